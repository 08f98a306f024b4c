"""Who may call what, on the real broker: every route, every token that is too small, no change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from rest_calls import Things, add_strangers, body_of, facts, furnish, path_of, query_of, the

from gpuslice.service.routes import ROUTES, AnyRoute
from serviceledger import ACCESS, ServiceLedger

PUBLIC = {"health", "openapi"}
#: What somebody with nothing but the access to the service may read.
FOR_EVERY_PERSON = {"offers", "prices"}
#: Changes of one's place in the queue: a place may become a server that costs.
WAITS = {"join_queue", "change_request", "leave_queue", "leave_from_page", "change_from_page"}
#: Questions with a body: they change nothing, so it is enough to read everything.
QUESTIONS = {"explain", "preview_price"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceLedger]:
    made = ServiceLedger.on_sqlite(tmp_path_factory.mktemp("ledger"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def things(world: ServiceLedger) -> Things:
    found = furnish(world)
    add_strangers(world, found)
    return found


def needs(route: AnyRoute) -> str:
    """What a caller needs, stated here once more and apart from the table: by path and method."""
    path = route.path
    if route.name in PUBLIC:
        return "nothing"
    if path.startswith("api/broker/"):
        return "broker"
    if path.startswith("api/node/"):
        return "node"
    if path == "metrics":
        return "metrics"
    if path.startswith(("api/admin/", "admin")) or path == "api/devices":
        looks = route.method == "GET" or route.name in QUESTIONS
        return "read-all" if looks else "admin"
    if route.name in WAITS:
        return "wait"
    return "person" if route.name in FOR_EVERY_PERSON else "own"


def send(
    world: ServiceLedger, things: Things, route: AnyRoute, headers: dict[str, str],
    client: httpx.Client | None = None, **more: Any,
) -> httpx.Response:  # fmt: skip
    body = body_of(route, world, things)
    caller = client or httpx.Client(trust_env=False, timeout=60, verify=False)
    return caller.request(
        route.method, world.at + path_of(route, things), params=query_of(route), headers=headers,
        json=None if route.is_form else body, data=body if route.is_form else None, **more,
    )  # fmt: skip


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


#: Tokens that an ADMINISTRATOR made for little, with what each is good for.
SMALL: dict[str, tuple[list[str], set[str]]] = {
    "access only": ([ACCESS], {"person"}),
    "own leases": ([ACCESS, "custom:gpuslice:lease!user=root1"], {"person", "own"}),
    "own stops": ([ACCESS, "custom:gpuslice:stop!user=root1"], {"person", "wait"}),
    "one stop": ([ACCESS, "custom:gpuslice:stop!server=root1/x"], {"person"}),
    "one server": ([ACCESS, "custom:gpuslice:lease!server=root1/x"], {"person"}),
    "reads all": ([ACCESS, "custom:gpuslice:read-all"], {"person", "read-all"}),
    "metrics": (["read:metrics"], {"metrics"}),
    "all but access": (["custom:gpuslice:admin", "custom:gpuslice:lease"], set()),
    "admin of a user": (
        [ACCESS, "custom:gpuslice:admin!user=root1", "custom:gpuslice:read-all!group=lab"],
        {"person"},
    ),
    "the hub's admin": ([ACCESS, "admin:users", "admin:servers", "admin-ui"], {"person"}),
}  # fmt: skip
#: What a token for one server, and for stops, may do besides; that it stays with its own is below.
ALSO = {
    "one server": {"lease", "bill", "me", "notices", "keep", "lease_page"},
    "own stops": {"stop", "stop_from_page"},
    "one stop": {"stop", "stop_from_page"},
    "reads all": {"lease", "bill", "lease_page"},
}


@pytest.mark.parametrize("which", SMALL)
def test_an_administrators_token_of_small_scope_does_no_more(
    world: ServiceLedger, things: Things, which: str
) -> None:
    scopes, good_for = SMALL[which]
    token = world.people.token("root1", scopes, admin=True)
    before = facts(world)
    for route in ROUTES:
        asked = needs(route)
        if asked == "nothing" or asked in good_for or route.name in ALSO.get(which, ()):
            continue
        answer = send(world, things, route, bearer(token))
        # Spawner and node have tokens of their own, which the hub does not know.
        due = 401 if asked in ("broker", "node") else 403
        assert answer.status_code == due, (route.name, answer.text)
    assert facts(world) == before


def test_nobody_and_an_unknown_token_are_401(world: ServiceLedger, things: Things) -> None:
    before = facts(world)
    for headers in ({}, bearer("f" * 32), bearer("unknown"), {"Authorization": "Basic cm9vdDp4"}):
        for route in ROUTES:
            if route.name in PUBLIC:
                continue
            answer = send(world, things, route, headers, follow_redirects=False)
            if route.is_page and route.method == "GET":
                assert answer.status_code == 302  # to the login
            else:
                assert answer.status_code == 401, (route.name, answer.text)
    assert facts(world) == before


def test_fixed_tokens_open_their_own_routes_and_no_other(
    world: ServiceLedger, things: Things
) -> None:
    before = facts(world)
    config = world.config
    own = {"broker": config.broker_token, "node": config.node_token}
    for kind, token in own.items():
        for route in ROUTES:
            if needs(route) in ("nothing", kind):
                continue
            answer = send(world, things, route, bearer(token), follow_redirects=False)
            assert answer.status_code in (401, 302), (kind, route.name, answer.text)
    for route in ROUTES:
        # The operator is no person, and is neither spawner nor node.
        asked = needs(route)
        if asked in ("person", "wait", "broker", "node") or (
            asked == "own" and route.name not in _BY_ALL
        ):
            answer = send(world, things, route, bearer(config.operator_token))
            assert answer.status_code in (401, 403), (route.name, answer.text)
    assert facts(world) == before


#: Routes about one lease that whoever reads or administers everything may call, too.
_BY_ALL = {"lease", "bill", "stop", "lease_page", "stop_from_page"}


def tokens(world: ServiceLedger) -> dict[str, str]:
    """A token with which a call that needs so much is admitted."""
    root, ada = world.config.operator_token, world.reader("ada")
    return {
        "broker": world.config.broker_token, "node": world.config.node_token, "admin": root,
        "read-all": root, "metrics": root, "person": ada, "own": ada, "wait": ada, "nothing": ada,
    }  # fmt: skip


#: What ends what the others are about: each is looked at by itself.
ENDS = (
    "leave_queue", "leave_from_page", "remove_request", "admin_remove_request", "stop",
    "stop_from_page", "broker_stop", "admin_stop", "drain",
)  # fmt: skip


def test_the_calls_that_were_refused_are_good_ones(ledger: ServiceLedger) -> None:
    """Otherwise a 403 would prove nothing: with the right token every one of them works."""
    things = furnish(ledger)
    add_strangers(ledger, things)
    root, ada = ledger.config.operator_token, ledger.reader("ada")
    admitted = tokens(ledger)
    names = [route.name for route in ROUTES if route.name not in ENDS]
    names.sort(key=lambda name: (name == "started", name.startswith(("admin_set_l", "remove"))))
    said = {}
    for name in names:
        route = the(name)
        if name == "admin_set_limit" or name.endswith("policy_of_everyone"):
            continue  # one policy, changed through the API by `set_limit` already
        if name.startswith("remove_policy"):
            path = path_of(route, things)
            version = ledger.ask(root, "GET", path)["version"]
            answer = ledger.call(root, "DELETE", path, {"version": version, "reason": "a test"})
        elif name == "change_request":
            mine = ledger.ask(ada, "GET", "api/queue", query={"live": "true"})["requests"]
            three = next(one for one in mine if one["server"] == "three")
            body = {"slice": "half", "version": three["version"]}
            answer = ledger.call(ada, "PUT", path_of(route, things), body)
        else:
            answer = send(ledger, things, route, bearer(admitted[needs(route)]))
        said[name] = (answer.status_code, answer.text[:200])
    # There is no hub that could say who is gone; with one it is called in test_people.py.
    assert "hub-unavailable" in said.pop("close_missing_users")[1]
    wrong = {name: what for name, what in said.items() if what[0] >= 400}
    assert not wrong


@pytest.mark.parametrize("name", ENDS)
def test_so_are_those_that_end_something(ledger: ServiceLedger, name: str) -> None:
    things = furnish(ledger)
    before = facts(ledger)
    answer = send(ledger, things, the(name), bearer(tokens(ledger)[needs(the(name))]))
    assert answer.status_code < 400, answer.text
    assert facts(ledger) != before


def without_nonces(page: str) -> str:
    """A page but for what is drawn anew for each answer."""
    return re.sub(r'(nonce|xsrf_token:|value)[=\s]*"[^"]*"', "", page)


# --- whose is it? -----------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["a user's token", "a browser", "a notebook"])
def test_what_is_somebody_elses_is_as_if_it_were_not_there(
    world: ServiceLedger, things: Things, whose: str
) -> None:
    client = None
    headers: dict[str, str] = {}
    if whose == "a browser":
        client = world.browser("bob")
        headers = {
            "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin",
            "X-XSRFToken": world.xsrf(client),
        }  # fmt: skip
    elif whose == "a notebook":
        headers = bearer(world.notebook("bob"))
    else:
        headers = bearer(world.reader("bob"))
    before = facts(world)
    nothing = Things("e" * 32, "e" * 32, "e" * 32, 1 << 40, "e" * 32)
    own = [
        route for route in ROUTES
        if needs(route) in ("own", "wait") and (route.parameters or route.name == "keep")
    ]  # fmt: skip
    assert {"lease", "bill", "stop", "leave_queue", "change_request", "keep"} <= {
        route.name for route in own
    }
    for route in own:
        adas = send(world, things, route, headers, client)
        none = send(world, nothing, route, headers, client)
        assert adas.status_code in (403, 404), (route.name, adas.text)
        assert adas.status_code == none.status_code, route.name
        assert without_nonces(adas.text) == without_nonces(none.text), route.name
        assert {*adas.headers} == {*none.headers}
    assert facts(world) == before


def test_nor_is_there_more_work_for_what_is_somebody_elses(
    world: ServiceLedger, things: Things
) -> None:
    """The time of an answer would tell that there is such a lease: so it is the same work."""
    read: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        read.append(statement)

    nothing = Things("e" * 32, "e" * 32, "e" * 32, 1 << 40, "e" * 32)
    bob = bearer(world.reader("bob"))
    own = [
        route for route in ROUTES if needs(route) in ("own", "wait") and route.parameters
    ]  # fmt: skip
    sa.event.listen(world.database.engine, "before_cursor_execute", note)
    try:
        for route in own:
            did = []
            for asked in (things, nothing):
                read.clear()
                send(world, asked, route, bob)
                did.append([*read])
            assert did[0] == did[1], route.name
    finally:
        sa.event.remove(world.database.engine, "before_cursor_execute", note)


def test_a_user_cannot_ask_for_another_account(world: ServiceLedger, things: Things) -> None:
    bob = world.reader("bob")
    mine = world.ask(bob, "GET", "api/entries")["entries"]
    assert mine and all("ada" not in str(entry) for entry in mine)
    assert "ada" not in world.call(bob, "GET", "api/entries/export").text
    assert world.ask(bob, "GET", "api/usage")["name"] == "bob"
    assert world.ask(bob, "GET", "api/queue")["requests"] == []
    assert {lease["user"] for lease in world.ask(bob, "GET", "api/leases")["leases"]} == {"bob"}
    for path in ("api/entries", "api/entries/export", "api/usage", "api/queue", "api/leases"):
        for query in ({"whose": "user", "name": "ada"}, {"name": "ada"}, {"user": "ada"}):
            answer = world.call(bob, "GET", path, query=query)
            # An argument that is not understood is refused, not quietly left out.
            assert answer.status_code == 400, (path, query)
    for path in ("api/admin/entries", "api/admin/usage", "api/admin/credits"):
        for name in ("ada", "nobody-at-all"):
            answer = world.call(bob, "GET", path, query={"whose": "user", "name": name})
            assert answer.status_code == 403


def test_a_service_with_a_users_name_is_not_that_user(world: ServiceLedger, things: Things) -> None:
    scopes = [ACCESS, "custom:gpuslice:lease", "custom:gpuslice:stop"]
    impostor = world.people.token("ada", scopes, kind="service")
    for route in ROUTES:
        if needs(route) in ("own", "wait", "person", "read-all", "admin"):
            answer = send(world, things, route, bearer(impostor))
            assert answer.status_code in (403, 404), (route.name, answer.text)


# --- forged requests --------------------------------------------------------------------------

_FOREIGN = "https://evil.example"
FORGED = {
    "a form on another site": {
        "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": _FOREIGN,
    },
    "fetch, no-cors": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    "fetch, cors": {
        "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": _FOREIGN,
    },
    "another service of this host": {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    "a form of this host": {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"},
    "an old browser": {},
    "a guess": {
        "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "X-XSRFToken": "x" * 40,
    },
}  # fmt: skip


@pytest.mark.parametrize("how", FORGED)
def test_a_cookie_alone_changes_nothing(world: ServiceLedger, things: Things, how: str) -> None:
    admin = ("custom:gpuslice:admin", "custom:gpuslice:read-all")
    before = facts(world)
    for name in ("root1", "ada"):
        victim = world.browser(name, *admin)
        for route in ROUTES:
            if route.method == "GET" or not route.access.by_hub:
                continue
            answer = send(world, things, route, FORGED[how], victim)
            assert answer.status_code == 403, (name, route.name, answer.text)
    assert facts(world) == before


def test_with_the_token_of_the_page_the_same_browser_may(ledger: ServiceLedger) -> None:
    things = furnish(ledger)
    root = ledger.browser("root1", "custom:gpuslice:admin", "custom:gpuslice:read-all")
    headers = {
        "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors",
        "X-XSRFToken": ledger.xsrf(root),
    }  # fmt: skip
    for name in ("give_credit", "set_policy_of_user", "remove_request", "admin_stop"):
        answer = send(ledger, things, the(name), headers, root)
        assert answer.status_code < 400, (name, answer.text)


def test_another_browsers_page_token_is_of_no_use(world: ServiceLedger, things: Things) -> None:
    root, mallory = (world.browser(name, "custom:gpuslice:admin") for name in ("root1", "mallory"))
    headers = {
        "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors",
        "X-XSRFToken": world.xsrf(mallory),
    }  # fmt: skip
    before = facts(world)
    assert send(world, things, the("give_credit"), headers, root).status_code == 403
    assert facts(world) == before
