"""The route table without a hub: who is let in, what is refused, and in which words."""

from __future__ import annotations

import json
import logging
import socket
import typing
import uuid

import httpx
import pytest
from service_stub import make_lease
from service_world import ACCESS, ServiceThread, until

from gpuslice import wire
from gpuslice.errors import Refused
from gpuslice.service.auth import Access
from gpuslice.service.routes import ROUTES, AnyRoute

BODIES = {
    "grant": {"attempt": uuid.uuid4().hex, "user": "alice", "slice": "quarter"},
    "broker_stop": {"reason": "the server was stopped", "actor": "spawner"},
    "broker_choices": {"user": "alice", "groups": ["lab"]},
    "drain": {"reason": "shutdown", "actor": "gpuslice up"},
    "started": {"started_us": 1, "boot_id": "b"},
    "stop": {"reason": "needed elsewhere"},
    "set_limit": {"scope": "default", "value": 3, "version": 1, "reason": "more users"},
    "admin_set_limit": {"scope": "default", "value": "3", "version": "1", "reason": "more users"},
    "admin_stop": {"reason": "needed elsewhere"},
    "join_for": {"user": "alice", "slice": "quarter"},
}
EVERYTHING = [
    "custom:gpuslice:admin",
    "custom:gpuslice:read-all",
    "custom:gpuslice:lease",
    "custom:gpuslice:stop",
    "custom:gpuslice:broker",
    "read:metrics",
    "admin:users",
]


def call(
    service: ServiceThread, route: AnyRoute, token: str | None, lease_id: str = "0" * 32
) -> httpx.Response:
    words = {
        "lease_id": lease_id, "request_id": "0" * 32, "name": "alice", "number": 1,
        "node_id": "node-1", "device": "GPU-a",
    }  # fmt: skip
    query = {"user": "alice"} if route.name == "current" else {}
    body = BODIES.get(route.name, {}) if route.has_body else None
    return httpx.request(
        route.method,
        f"{service.url}{route.path.format_map(words)}",
        params=query,
        json=None if route.is_form else body,
        data=body if route.is_form else None,
        headers={"Authorization": f"token {token}"} if token else {},
        trust_env=False,
    )


def refusal(answer: httpx.Response) -> wire.Refusal:
    assert answer.headers["Content-Type"] == "application/json"
    assert "Traceback" not in answer.text
    return wire.Refusal.model_validate_json(answer.content)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_table_says_what_the_function_takes_and_gives(route: AnyRoute) -> None:
    hints = typing.get_type_hints(route.run)
    body, query = typing.get_args(hints["call"])
    assert (body, query, hints["return"]) == (route.body, route.query, route.answer)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_without_a_token_nothing_but_the_public_routes(
    lonely: ServiceThread, route: AnyRoute
) -> None:
    answer = call(lonely, route, None)
    if route.access is Access.PUBLIC:
        assert answer.status_code == 200
    elif route.is_page and route.method == "GET":
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("/@/space%20word/hub/api/oauth2/authorize?")
    else:
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert lonely.broker.calls == []


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if r.access.by_hub], ids=lambda route: route.name
)
def test_with_too_small_a_scope_it_is_403(lonely: ServiceThread, route: AnyRoute) -> None:
    lease = lonely.broker.add(make_lease("alice"))
    # All scopes there are, but not the one to reach the service (and no metrics).
    lonely.remember("a" * 32, [s for s in EVERYTHING if s != "read:metrics"], "alice")
    # Only the one to reach the service.
    lonely.remember("b" * 32, [ACCESS], "alice")
    # Everything, but only for some group: not everybody.
    narrow = [f"{s}!group=x" for s in EVERYTHING if s not in ("custom:gpuslice:stop",)]
    lonely.remember("c" * 32, [ACCESS, *narrow], "alice")
    assert call(lonely, route, "a" * 32, lease.lease_id).status_code == 403
    if route.access is Access.USER:
        return  # needs nothing more than the access
    for token in ("b" * 32, "c" * 32):
        answer = call(lonely, route, token, lease.lease_id)
        assert answer.status_code == 403
        assert route.is_page or refusal(answer).reason == "forbidden"
    assert lonely.broker.calls == []


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_with_the_hub_down_people_read_so_and_broker_and_node_go_on(
    lonely: ServiceThread, route: AnyRoute
) -> None:
    state = wire.LeaseState.GRANTED if route.name == "started" else wire.LeaseState.RUNNING
    lease = lonely.broker.add(make_lease("alice", state=state))
    config = lonely.config
    tokens = {Access.BROKER: config.broker_token, Access.NODE: config.node_token}
    answer = call(lonely, route, tokens.get(route.access, "unknown-token"), lease.lease_id)
    if not route.access.by_hub:
        assert answer.status_code == route.status
        return
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "10"
    if not route.is_page:
        assert refusal(answer).reason == "hub-unavailable"
        assert "\n" not in refusal(answer).message


def test_fixed_tokens_open_only_their_own_routes(lonely: ServiceThread) -> None:
    for route in ROUTES:
        if route.access is Access.BROKER:
            assert call(lonely, route, lonely.config.node_token).status_code == 401
        if route.access is Access.NODE:
            assert call(lonely, route, lonely.config.broker_token).status_code == 401
    assert lonely.broker.calls == []


@pytest.mark.parametrize("scheme", ["token", "Bearer", "bearer", "TOKEN"])
def test_token_and_bearer_are_both_understood(lonely: ServiceThread, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {lonely.config.broker_token}"}
    answer = httpx.get(f"{lonely.url}api/broker/offers", headers=headers, trust_env=False)
    assert answer.status_code == 200


READS_ALL = (
    "list_accounts", "reservations", "unaccounted", "whole_queue", "all_prices", "all_leases",
    "devices", "limits", "audit", "entries",
)  # fmt: skip


@pytest.mark.parametrize("name", READS_ALL)
def test_who_may_read_all_is_answered(lonely: ServiceThread, name: str) -> None:
    """Over the stub: it has every desk that a route may ask."""
    lonely.remember("e" * 32, [ACCESS, "custom:gpuslice:read-all"], "ta")
    route = next(route for route in ROUTES if route.name == name)
    answer = call(lonely, route, "e" * 32)
    assert answer.status_code == 200, answer.text


# --- the life of a lease through the spawner's and the node's routes ------------------------


def broker(service: ServiceThread, method: str, path: str, **kwargs: typing.Any) -> httpx.Response:
    headers = {"Authorization": f"token {service.config.broker_token}"} | kwargs.pop("headers", {})
    return httpx.request(
        method, f"{service.url}api/broker/{path}", headers=headers, trust_env=False, **kwargs
    )


def test_grant_start_stop_settle(lonely: ServiceThread) -> None:
    request = {"attempt": uuid.uuid4().hex, "user": "zoë/ ?", "server": "gpu", "slice": "quarter"}
    first = broker(lonely, "POST", "leases", json=request)
    again = broker(lonely, "POST", "leases", json=request)
    assert (first.status_code, first.content) == (201, again.content)
    lease_id = wire.LeaseGrant.model_validate_json(first.content).lease_id

    started = {"started_us": 5, "boot_id": "b"}
    headers = {"Authorization": f"token {lonely.config.node_token}"}
    url = f"{lonely.url}api/node/leases/{lease_id}/started"
    answers = [httpx.post(url, json=started, headers=headers, trust_env=False) for _ in range(2)]
    assert [a.status_code for a in answers] == [200, 409]
    assert answers[0].json() == {}
    assert refusal(answers[1]).reason == "not-granted"

    current = broker(lonely, "GET", "current", params={"user": "zoë/ ?", "server": "gpu"})
    assert current.json()["lease_id"] == lease_id
    none = broker(lonely, "GET", "current", params={"user": "zoë/ ?"})
    assert (none.status_code, refusal(none).reason) == (404, "no-such-lease")

    stop = {"reason": "stopped in the hub", "actor": "spawner"}
    assert broker(lonely, "POST", f"leases/{lease_id}/stop", json=stop).status_code == 200
    settle = broker(lonely, "POST", f"leases/{lease_id}/settle", params={"wait_s": "1.5"})
    assert settle.json()["state"] == "stopping"
    # The spawner ends the server itself, so the hub is not asked to.
    assert lonely.broker.calls[-2:] == [
        ("stop", lease_id, "stopped in the hub", "spawner", False),
        ("settle", lease_id, 1.5),
    ]


def test_a_refusal_arrives_whole(lonely: ServiceThread) -> None:
    lonely.broker.refusal = Refused(
        "gpu-full", "All are busy.", status=503, retry_after_s=60, alternatives=["cpu"]
    )
    answer = broker(lonely, "POST", "leases", json=BODIES["grant"])
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "60"
    assert refusal(answer) == lonely.broker.refusal.refusal


def test_a_mistake_of_ours_shows_no_traceback(
    lonely: ServiceThread, caplog: pytest.LogCaptureFixture
) -> None:
    lonely.broker.failure = ValueError("SELECT secret FROM ledger")
    answer = broker(lonely, "GET", "offers")
    assert answer.status_code == 500
    assert refusal(answer).reason == "internal"
    assert "secret" not in answer.text
    assert any(record.exc_info for record in caplog.records)


def test_drain(lonely: ServiceThread) -> None:
    lonely.broker.add(make_lease("alice"))
    answer = broker(lonely, "POST", "drain", json=BODIES["drain"])
    assert answer.json() == {"live": 1}


# --- hostile input --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'"x"', "body"),
        (b"NaN", "body"),
        (b"[" * 60_000, "body"),
        (b'{"attempt": NaN}', "body"),
        (b'{"attempt": Infinity}', "body"),
        (b'{"user": "\\ud800"}', "body"),
        (b"\xff\xfe", "body"),
        (b'{"attempt": 1e999}', "attempt"),
        (json.dumps(BODIES["grant"] | {"attempt": "../../etc"}).encode(), "attempt"),
        (json.dumps(BODIES["grant"] | {"user": ""}).encode(), "user"),
        (json.dumps(BODIES["grant"] | {"user": "a\0b"}).encode(), "null character"),
        (json.dumps(BODIES["grant"] | {"us\0er": "a"}).encode(), "null character"),
        (json.dumps(BODIES["grant"] | {"user": "x" * 300}).encode(), "user"),
        (json.dumps(BODIES["grant"] | {"slice": "x" * 300}).encode(), "slice"),
        (json.dumps(BODIES["grant"] | {"slice": -1}).encode(), "slice"),
        (json.dumps(BODIES["grant"] | {"price": 0}).encode(), "price"),
        (json.dumps(BODIES["grant"] | {"groups": "a"}).encode(), "groups"),
        (b'{"attempt": ' + b"9" * 5000 + b"}", "body"),
    ],
    # The same in every worker: an attempt is another number each time.
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else None,
)
def test_a_wrong_body_is_400_and_names_the_field(
    lonely: ServiceThread, body: bytes, says: str
) -> None:
    answer = broker(
        lonely, "POST", "leases", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert refusal(answer).reason == "bad-request"
    assert says in refusal(answer).message
    assert len(answer.content) < 1000
    assert lonely.broker.calls == []


def test_large_bodies(lonely: ServiceThread) -> None:
    json_type = {"Content-Type": "application/json"}
    for size in (64 * 1024 + 1, 1_000_000):
        answer = broker(lonely, "POST", "leases", content=b"x" * size, headers=json_type)
        assert (answer.status_code, refusal(answer).reason) == (413, "too-large")
    try:
        # Beyond what is read at all: tornado ends the connection, with or without a 400.
        answer = broker(lonely, "POST", "leases", content=b"x" * 5_000_000, headers=json_type)
    except httpx.TransportError:
        pass
    else:
        assert answer.status_code == 400


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_only_json_is_a_body(lonely: ServiceThread, kind: str) -> None:
    content = json.dumps(BODIES["grant"]).encode()
    answer = broker(lonely, "POST", "leases", content=content, headers={"Content-Type": kind})
    assert (answer.status_code, refusal(answer).reason) == (415, "bad-content-type")


@pytest.mark.parametrize(
    "query",
    ["wait_s=NaN", "wait_s=inf", "wait_s=-1", "wait_s=1e9", "wait_s=", "wait_s=1&wait_s=2",
     "other=1", "wait_s=%ff", "%00=1", "wait_s=%00"],
)  # fmt: skip
def test_a_wrong_query_is_400(lonely: ServiceThread, query: str) -> None:
    lease = lonely.broker.add(make_lease("alice"))
    answer = broker(lonely, "POST", f"leases/{lease.lease_id}/settle?{query}")
    assert (answer.status_code, refusal(answer).reason) == (400, "bad-request")
    assert lonely.broker.calls == []


@pytest.mark.parametrize(
    "path",
    ["leases/..%2f..%2fx", "leases/%00", "leases/%ff", "leases/" + "z" * 32, "leases/'%20or%201",
     "leases/" + "0" * 31, "leases/%F0%9F%92%A3", "nothing", "../broker/nothing", "leases/a/b/c"],
)  # fmt: skip
def test_a_wrong_path_is_a_4xx_in_json(lonely: ServiceThread, path: str) -> None:
    # By hand: a client library would tidy the path first.
    request = (
        f"GET {lonely.config.prefix}api/broker/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: token {lonely.config.broker_token}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", lonely.port)) as sock:
        sock.sendall(request.encode())
        raw = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"404")
    wire.Refusal.model_validate_json(body)


@pytest.mark.parametrize(
    "value",
    ["x" * 30_000, "token " + "x" * 30_000, "Basic Zm9vOmJhcg==", "token", "token a b", "\xff"],
)
def test_a_strange_authorization_is_401_and_asks_nobody(lonely: ServiceThread, value: str) -> None:
    # The hub is down, so asking it would be a 503.
    headers = {"Authorization": value.encode("latin-1")}
    for path in ("api/me", "api/broker/offers", "metrics"):
        answer = httpx.get(f"{lonely.url}{path}", headers=headers, trust_env=False)
        assert answer.status_code == 401


def test_a_token_in_the_url_counts_for_nothing(lonely: ServiceThread) -> None:
    lonely.remember("a" * 32, [ACCESS, *EVERYTHING], "alice")
    for headers in ({}, {"Sec-Fetch-Mode": "websocket"}):
        answer = httpx.get(
            f"{lonely.url}api/me", params={"token": "a" * 32}, headers=headers, trust_env=False
        )
        assert answer.status_code == 401


def test_other_methods_and_paths(lonely: ServiceThread) -> None:
    def ask(method: str, path: str) -> httpx.Response:
        return httpx.request(method, f"{lonely.url}{path}", trust_env=False)

    answer = ask("DELETE", "api/leases")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")
    assert refusal(answer).reason == "method-not-allowed"
    assert ask("POST", "api/health").status_code == 405
    assert ask("BREW", "api/health").status_code == 405
    assert ask("HEAD", "api/health").status_code == 200
    assert refusal(ask("GET", "api/nothing")).reason == "not-found"
    assert refusal(ask("POST", "api/nothing")).reason == "not-found"
    assert ask("GET", "nothing").headers["Content-Type"].startswith("text/html")
    assert ask("GET", "static/gpuslice.css").headers["Content-Type"] == "text/css"
    assert ask("GET", "static/../app.py").status_code == 404
    assert ask("GET", "static/%2e%2e/app.py").status_code == 404


# --- people, believed without a hub ---------------------------------------------------------


def person(
    service: ServiceThread, token: str, method: str, path: str, **kwargs: typing.Any
) -> httpx.Response:
    return httpx.request(
        method,
        f"{service.url}{path}",
        headers={"Authorization": f"token {token}"},
        trust_env=False,
        **kwargs,
    )


def test_pages_of_leases_are_followed_by_next(lonely: ServiceThread) -> None:
    mine = [lonely.broker.add(make_lease("alice")).lease_id for _ in range(5)]
    lonely.broker.add(make_lease("bob"))
    lonely.remember("a" * 32, [ACCESS, "custom:gpuslice:lease!user=alice"], "alice")
    seen: list[str] = []
    query: dict[str, str] = {"limit": "2"}
    while True:
        page = person(lonely, "a" * 32, "GET", "api/leases", params=query).json()
        seen += [lease["lease_id"] for lease in page["leases"]]
        if page["next"] is None:
            break
        query["before"] = page["next"]
    assert seen == mine[::-1]
    too_many = person(lonely, "a" * 32, "GET", "api/leases", params={"limit": "201"})
    assert refusal(too_many).reason == "bad-request"


def test_a_token_for_two_servers_is_no_notebooks_token(lonely: ServiceThread) -> None:
    scopes = [f"custom:gpuslice:lease!server=alice/{name}" for name in ("a", "b")]
    lonely.remember("a" * 32, [ACCESS, *scopes], "alice")
    answer = person(lonely, "a" * 32, "GET", "api/me")
    assert (answer.status_code, refusal(answer).reason) == (403, "ambiguous-token")


def test_a_token_for_somebody_elses_server_is_for_nothing(lonely: ServiceThread) -> None:
    lonely.broker.add(make_lease("bob", "x"))
    scopes = ["custom:gpuslice:lease!server=bob/x", "custom:gpuslice:lease!user=bob"]
    lonely.remember("a" * 32, [ACCESS, *scopes], "alice")
    assert person(lonely, "a" * 32, "GET", "api/me").status_code == 403


def test_wide_tokens_have_to_say_which_lease_to_keep(lonely: ServiceThread) -> None:
    mine, theirs = (lonely.broker.add(make_lease(user)) for user in ("alice", "bob"))
    lonely.remember("a" * 32, [ACCESS, "custom:gpuslice:lease!user=alice"], "alice")
    none = person(lonely, "a" * 32, "POST", "api/me/keep")
    assert (none.status_code, refusal(none).reason) == (400, "bad-request")
    for lease_id, status in ((mine.lease_id, 200), (theirs.lease_id, 404), ("f" * 32, 404)):
        body = {"lease_id": lease_id}
        assert person(lonely, "a" * 32, "POST", "api/me/keep", json=body).status_code == status
    assert lonely.broker.calls == [("keep", "alice", mine.lease_id)]


def test_an_administrator_says_why(lonely: ServiceThread) -> None:
    theirs = lonely.broker.add(make_lease("bob"))
    lonely.remember("a" * 32, [ACCESS, *EVERYTHING], "root1")
    path = f"api/leases/{theirs.lease_id}/stop"
    assert person(lonely, "a" * 32, "POST", path).status_code == 400
    assert person(lonely, "a" * 32, "POST", path, json={"reason": ""}).status_code == 400
    answer = person(lonely, "a" * 32, "POST", path, json={"reason": "maintenance"})
    assert answer.json()["stop_reason"] == "maintenance"
    assert lonely.broker.calls == [("stop", theirs.lease_id, "maintenance", "root1", True)]


def test_a_reader_of_all_does_not_stop(lonely: ServiceThread) -> None:
    theirs = lonely.broker.add(make_lease("bob"))
    scopes = [ACCESS, "custom:gpuslice:read-all", "custom:gpuslice:stop!user=ta1"]
    lonely.remember("a" * 32, scopes, "ta1")
    assert person(lonely, "a" * 32, "GET", f"api/leases/{theirs.lease_id}").status_code == 200
    answer = person(lonely, "a" * 32, "POST", f"api/leases/{theirs.lease_id}/stop")
    assert answer.status_code == 403
    assert lonely.broker.calls == []


# --- health, metrics, OpenAPI ---------------------------------------------------------------


def test_health(lonely: ServiceThread) -> None:
    def health() -> httpx.Response:
        return httpx.get(f"{lonely.url}api/health", trust_env=False)

    assert health().json() == {"status": "ok"}
    lonely.broker.database_ok = False
    assert health().status_code == 503


def test_metrics_have_every_label_and_no_user(lonely: ServiceThread) -> None:
    lonely.broker.add(make_lease("alice"))
    lonely.remember("a" * 32, ["read:metrics"], "prometheus", kind="service")
    text = person(lonely, "a" * 32, "GET", "metrics").text
    assert 'gpuslice_lease_hold_leases{kind="shared",state="running"} 2.0' in text
    assert 'gpuslice_lease_hold_leases{kind="mig",state="granted"} 0.0' in text
    assert 'gpuslice_slice_hold_leases{slice="quarter",state="running"} 2.0' in text
    assert 'gpuslice_device_list_devices{state="quarantined"} 0.0' in text
    assert "gpuslice_node_reconcile_age_seconds NaN" in text
    assert "gpuslice_node_reach_success 1.0" in text
    assert 'gpuslice_error_raise_total{what="hub"} 3.0' in text
    for route in ROUTES:
        for code in ("2xx", "4xx", "5xx"):
            assert f'gpuslice_request_answer_total{{code="{code}",route="{route.name}"}}' in text
    assert "alice" not in text


def test_openapi_has_every_route_and_its_references_lead_somewhere(
    lonely: ServiceThread,
) -> None:
    document = httpx.get(f"{lonely.url}api/openapi.json", trust_env=False).json()
    assert document["openapi"] == "3.1.0"
    listed = {
        (method.upper(), path.removeprefix("/"))
        for path, item in document["paths"].items()
        for method in item
    }
    assert listed == {(route.method, route.path) for route in ROUTES if not route.is_page}
    text = json.dumps(document)
    for name in {ref.split('"')[0] for ref in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"], name
    for item in document["paths"].values():
        for operation in item.values():
            for requirement in operation["security"]:
                assert set(requirement) <= set(document["components"]["securitySchemes"])
    assert lonely.config.broker_token not in text


def test_every_answer_carries_the_security_headers(lonely: ServiceThread) -> None:
    for path in ("api/health", "api/me", "nothing", "api/nothing", "", "static/gpuslice.css"):
        headers = httpx.get(f"{lonely.url}{path}", trust_env=False).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Server" not in headers


def test_the_log_has_one_clean_line_and_no_secret(
    lonely: ServiceThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gpuslice.service")
    broker(lonely, "GET", "offers", params={"user": "secret-name"})

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.getMessage() == "request"]

    # The answer leaves before its line is written, on the service's thread.
    until(lambda: bool(lines()))
    records = lines()
    assert len(records) == 1
    fields = records[0].fields  # type: ignore[attr-defined]
    assert (fields["route"], fields["status"], fields["caller"]) == (
        "broker_offers", 200, "broker",
    )  # fmt: skip
    assert "secret-name" not in str(fields)
    assert lonely.config.broker_token not in caplog.text
