"""The service with a real hub and proxy: logins, tokens, XSRF, and a hub that dies."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from bs4 import BeautifulSoup
from service_stub import make_lease, make_limit, make_offer
from service_world import ACCESS, FETCH, HubWorld, ServiceThread, xsrf_cookie, xsrf_of

from gpuslice import wire
from gpuslice.service.routes import ROUTES

pytestmark = pytest.mark.hub

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def reason(answer: httpx.Response) -> str:
    return wire.Refusal.model_validate_json(answer.content).reason


# --- browsers -------------------------------------------------------------------------------


def test_login_page_and_stop(world: HubWorld) -> None:
    broker = world.service.broker
    lease = broker.add(make_lease("eve1", "gpu", title="<script>alert(1)</script>"))
    done = make_lease("eve1", state=wire.LeaseState.ENDED, cost_u=1_234_567, simulated=False)
    broker.add(done)
    other = broker.add(make_lease("bob", title="Not hers"))
    client = world.browser("eve1")

    page = client.get(world.url)
    assert page.status_code == 200
    assert str(page.url).startswith(world.url)
    text = BeautifulSoup(page.text, "html.parser").get_text(" ")
    assert "<script>" not in page.text
    assert "<script>alert(1)</script>" in text
    assert "Not hers" not in text
    assert "SIMULATED" in text
    assert "no real money" in text
    assert "0.7000 EUR" in text
    assert "1.2346 EUR" in text
    assert "advisory" in text
    assert client.get(f"{world.url}static/gpuslice.css").status_code == 200

    # A forged POST: the cookie goes along, the token does not.
    stop = f"{world.url}leases/{lease.lease_id}/stop"
    for headers in ({}, FETCH, {"Sec-Fetch-Mode": "no-cors"}):
        answer = client.post(stop, headers=headers, data={"x": "y"})
        assert answer.status_code == 403
        assert answer.headers["Content-Type"].startswith("text/html")
    wrong = client.post(stop, data={"_xsrf": "2|" + xsrf_of(page.text)})
    assert wrong.status_code == 403
    cross = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    forged = client.post(stop, data={"_xsrf": xsrf_of(page.text)}, headers=cross)
    assert forged.status_code == 403
    theirs = f"{world.url}leases/{other.lease_id}/stop"
    assert client.post(theirs, data={"_xsrf": xsrf_of(page.text)}).status_code == 404
    assert broker.views[lease.lease_id].state is wire.LeaseState.RUNNING

    answer = client.post(stop, data={"_xsrf": xsrf_of(page.text)})
    assert (answer.status_code, str(answer.url)) == (200, world.url)
    assert "stopping" in answer.text
    assert broker.calls[-1] == ("stop", lease.lease_id, "stopped by its user", "eve1", True)
    assert ("stop", other.lease_id) not in {call[:2] for call in broker.calls}


def test_the_api_with_a_browsers_cookie(world: HubWorld) -> None:
    broker = world.service.broker
    lease = broker.add(make_lease("mia"))
    client = world.browser("mia")
    xsrf = xsrf_cookie(client, world.url)

    # Without the token not even reading, when it is a script that reads.
    assert client.get(f"{world.url}api/me", headers=FETCH).status_code == 403
    with_xsrf = FETCH | {"X-XSRFToken": xsrf}
    me = client.get(f"{world.url}api/me", headers=with_xsrf)
    assert me.status_code == 200
    assert (me.json()["user"], me.json()["server"]) == ("mia", None)

    stop = f"{world.url}api/leases/{lease.lease_id}/stop"
    assert client.post(stop, headers=FETCH, json={}).status_code == 403
    assert broker.views[lease.lease_id].state is wire.LeaseState.RUNNING
    assert client.post(stop, headers=with_xsrf, json={"reason": "done"}).status_code == 200
    assert broker.calls[-1] == ("stop", lease.lease_id, "done", "mia", True)

    # Nobody else's token, and nobody else's session.
    other = world.browser("noa")
    other.get(world.url)
    assert other.get(f"{world.url}api/me", headers=with_xsrf).status_code == 403


def test_login_uses_pkce_and_state(world: HubWorld) -> None:
    anonymous = httpx.Client(trust_env=False, timeout=30)
    answer = anonymous.get(world.url)
    assert answer.status_code == 302
    query = parse_qs(urlsplit(answer.headers["Location"]).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["state"]
    for cookie in answer.headers.get_list("Set-Cookie"):
        assert "HttpOnly" in cookie
        assert "Path=/@/space%20word/services/gpuslice/" in cookie

    def callback(**params: str) -> httpx.Response:
        return anonymous.get(f"{world.url}oauth_callback", params=params)

    assert callback().status_code == 400
    assert callback(error="<b>no", error_description="<script>").status_code == 400
    assert "<script>" not in callback(error="x", error_description="<script>").text
    assert httpx.get(
        f"{world.url}oauth_callback?code=x&state=y", trust_env=False
    ).status_code == 403  # fmt: skip
    assert callback(code="made-up", state=query["state"][0]).status_code == 503


def test_a_restart_of_the_service_logs_nobody_out(world: HubWorld) -> None:
    client = world.browser("uma")
    xsrf = xsrf_cookie(client, world.url)
    world.service.__exit__()
    world.service = ServiceThread(world.config, world.service_port)
    world.service.__enter__()
    answer = client.get(world.url, follow_redirects=False)
    assert answer.status_code == 200
    assert xsrf_cookie(client, world.url) == xsrf


def test_administrators_of_the_hub_are_nobody_here_by_themselves(world: HubWorld) -> None:
    """The browser's token carries the scope; whether the hub calls somebody admin plays no part."""
    theirs = world.service.broker.add(make_lease("bob"))
    for user, read, stop in (("root1", 200, 200), ("ta1", 200, 403), ("kim", 403, 404)):
        client = world.browser(user)
        headers = FETCH | {"X-XSRFToken": xsrf_cookie(client, world.url)}
        assert client.get(f"{world.url}api/devices", headers=headers).status_code == read
        assert client.get(f"{world.url}api/admin/leases", headers=headers).status_code == read
        answer = client.post(
            f"{world.url}api/leases/{theirs.lease_id}/stop", headers=headers, json={"reason": "r"}
        )
        assert answer.status_code == stop
        world.service.broker.add(theirs)

    small = world.token("root1", [ACCESS, "custom:gpuslice:lease!user"])
    assert world.get("api/admin/leases", small).status_code == 403
    assert world.post(
        f"api/leases/{theirs.lease_id}/stop", small, json={"reason": "r"}
    ).status_code == 403  # fmt: skip
    assert world.get(f"api/leases/{theirs.lease_id}", small).status_code == 404


def test_the_administrators_pages_in_a_browser(world: HubWorld) -> None:
    broker = world.service.broker
    theirs = broker.add(make_lease("bob", "gpu"))
    broker.limit_views = [make_limit(version=4)]
    limit = {"scope": "default", "value": "6", "version": "4", "reason": "more"}
    stop = f"{world.url}admin/leases/{theirs.lease_id}/stop"

    root = world.browser("root1")
    page = root.get(f"{world.url}admin")
    assert page.status_code == 200
    assert "bob" in page.text
    token = xsrf_of(root.get(f"{world.url}admin/limits").text)
    before = list(broker.calls)
    for form in ({}, {"_xsrf": "2|" + token}, {"_xsrf": ""}):
        assert root.post(stop, data={"reason": "r"} | form).status_code == 403
        assert root.post(f"{world.url}admin/limits", data=limit | form).status_code == 403
    api = root.put(f"{world.url}api/admin/limits", headers=FETCH, json={})
    assert api.status_code == 403
    assert broker.calls == before

    # Another person's token with one's own session, and one's own without the scope.
    for user, reads in (("ta1", 200), ("kim", 403)):
        client = world.browser(user)
        assert client.get(f"{world.url}admin").status_code == reads
        own = xsrf_cookie(client, world.url)
        for sent in (token, own):
            assert client.post(stop, data={"reason": "r", "_xsrf": sent}).status_code == 403
            answer = client.post(f"{world.url}admin/limits", data=limit | {"_xsrf": sent})
            assert answer.status_code == 403
    assert broker.calls == before

    answer = root.post(f"{world.url}admin/limits", data=limit | {"_xsrf": token})
    assert (answer.status_code, answer.url.path.rsplit("/", 2)[1:]) == (200, ["admin", "limits"])
    assert broker.limit_views[0].value == 6
    assert root.post(stop, data={"reason": "maintenance", "_xsrf": token}).status_code == 200
    assert broker.calls[-1] == ("stop", theirs.lease_id, "maintenance", "root1", True)


def test_the_pages_with_a_cookie_refresh_themselves_only_with_the_token(world: HubWorld) -> None:
    """What the page's script does: it fetches the page, and the API, with the page's token."""
    client = world.browser("kim")
    page = BeautifulSoup(client.get(world.url).text, "html.parser")
    token = str(page.select_one("main.gs")["data-xsrf"])  # type: ignore[index]
    for path in ("", "api/me"):
        url = f"{world.url}{path}"
        assert client.get(url, headers=FETCH | {"X-XSRFToken": token}).status_code == 200
        assert client.get(url, headers=FETCH).status_code == 403


def test_the_hub_names_a_users_groups_to_every_token(world: HubWorld) -> None:
    client = world.browser("gia")
    assert world.api("POST", "groups/lab").status_code == 201
    assert world.api("POST", "groups/lab/users", json={"users": ["gia"]}).status_code == 200
    token = world.token("gia", [ACCESS, "custom:gpuslice:lease!user"])
    assert world.get("api/me", token).status_code == 200
    assert world.service.broker.groups == ("lab",)
    world.service.broker.groups = ()
    assert client.get(world.url).status_code == 200
    assert world.service.broker.groups == ("lab",)


# --- tokens ---------------------------------------------------------------------------------


def test_a_real_servers_own_token(world: HubWorld) -> None:
    broker = world.service.broker
    world.browser("alice")
    token = world.start_server("alice", "gpu")
    mine = broker.add(make_lease("alice", "gpu"))
    sibling = broker.add(make_lease("alice", ""))
    theirs = broker.add(make_lease("bob", "gpu"))
    for number, about in enumerate((None, mine, sibling), start=1):
        broker.noted.append(
            wire.Notice(
                id=number,
                lease_id=about and about.lease_id,
                kind="budget",
                severity="info",
                message="m",
                created_us=1,
            )
        )

    me = world.get("api/me", token).json()
    assert (me["user"], me["server"]) == ("alice", "gpu")
    assert [lease["lease_id"] for lease in me["leases"]] == [mine.lease_id]
    # Whatever it says about itself.
    assert world.get("api/me?server=", token).status_code == 400
    assert [notice["id"] for notice in world.get("api/me/notices", token).json()] == [1, 2]
    assert [n["id"] for n in world.get("api/me/notices?since=1", token).json()] == [2]
    broker.noted.clear()

    assert world.post("api/me/keep", token).status_code == 200
    assert world.post("api/me/keep", token, json={"lease_id": mine.lease_id}).status_code == 200
    wrong = world.post("api/me/keep", token, json={"lease_id": sibling.lease_id})
    assert (wrong.status_code, reason(wrong)) == (404, "no-such-lease")
    assert broker.calls[-1] == ("keep", "alice", mine.lease_id)

    assert world.get(f"api/leases/{mine.lease_id}", token).status_code == 200
    for lease in (sibling, theirs):
        assert world.get(f"api/leases/{lease.lease_id}", token).status_code == 404
    assert world.get("api/offers", token).status_code == 200
    # What needs the browser's login, and what is for others.
    assert world.post(f"api/leases/{mine.lease_id}/stop", token, json={}).status_code == 403
    for path in ("api/leases", "api/devices", "api/admin/leases", "metrics", "api/broker/offers"):
        assert world.get(path, token).status_code in (401, 403), path
    assert broker.views[mine.lease_id].state is wire.LeaseState.RUNNING

    default = world.start_server("alice", "")
    assert world.get("api/me", default).json()["server"] == ""
    # The page shows all leases of the user, so it is not for a notebook.
    assert world.get("", token).status_code == 403
    assert world.post(f"leases/{mine.lease_id}/stop", token).status_code == 403
    assert world.api("DELETE", "users/alice/servers/gpu").status_code in (202, 204)
    assert world.api("DELETE", "users/alice/server").status_code in (202, 204)


def test_scopes_of_tokens(world: HubWorld) -> None:
    broker = world.service.broker
    world.browser("carol")
    mine = broker.add(make_lease("carol", "a"))
    other = broker.add(make_lease("carol", "b"))
    stop = f"api/leases/{mine.lease_id}/stop"

    only_access = world.token("carol", [ACCESS])
    assert world.get("api/offers", only_access).status_code == 200
    assert world.get("api/me", only_access).status_code == 403
    assert world.post(stop, only_access, json={}).status_code == 403

    no_access = world.token("carol", ["custom:gpuslice:lease!user", "custom:gpuslice:stop!user"])
    assert world.get("api/me", no_access).status_code == 403

    read = world.token("carol", [ACCESS, "custom:gpuslice:lease!user"])
    assert world.get("api/me", read).json()["server"] is None
    assert len(world.get("api/leases", read).json()["leases"]) == 2
    assert world.post(stop, read, json={}).status_code == 403

    one = world.token("carol", [ACCESS, "custom:gpuslice:stop!server=carol/b"])
    assert world.post(stop, one, json={}).status_code == 404
    assert world.post(f"api/leases/{other.lease_id}/stop", one, json={}).status_code == 200

    all_mine = world.token("carol", [ACCESS, "custom:gpuslice:stop!user"])
    assert world.post(stop, all_mine, json={}).status_code == 200
    assert broker.calls[-1] == ("stop", mine.lease_id, "stopped by its user", "carol", True)

    inherit = world.token("carol", ["inherit"])
    assert world.get("api/me", inherit).json()["server"] is None


def test_a_hub_service_with_a_users_name_is_not_that_user(world: HubWorld) -> None:
    lease = world.service.broker.add(make_lease("alice"))
    token = world.impostor_token
    for path in ("api/me", "api/leases", "api/offers", f"api/leases/{lease.lease_id}"):
        assert world.get(path, token).status_code in (403, 404), path
    assert world.post(f"api/leases/{lease.lease_id}/stop", token, json={}).status_code == 404
    assert world.get("", token).status_code == 403


def test_metrics_for_a_scraper(world: HubWorld) -> None:
    answer = world.get("metrics", world.scraper_token)
    assert answer.status_code == 200
    assert "gpuslice_lease_hold_leases" in answer.text
    assert world.get("api/me", world.scraper_token).status_code == 403


def test_foreign_and_unknown_ids_look_the_same(world: HubWorld) -> None:
    world.browser("dan")
    theirs = world.service.broker.add(make_lease("bob"))
    scopes = [ACCESS, "custom:gpuslice:lease!user", "custom:gpuslice:stop!user"]
    token = world.token("dan", scopes)
    for method, path in (("GET", "api/leases/{}"), ("POST", "api/leases/{}/stop")):
        answers = [
            world.request(method, path.format(lease_id), token)
            for lease_id in (theirs.lease_id, "f" * 32, "not-an-id")
        ]
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.content for answer in answers}) == 1
        names = [set(answer.headers) for answer in answers]
        assert names[0] == names[1] == names[2]


def test_an_unknown_token_is_401_everywhere(world: HubWorld) -> None:
    for route in ROUTES:
        if route.access.by_hub and not route.is_page:
            path = route.path.replace("{lease_id}", "f" * 32)
            answer = world.request(route.method, path, "not-a-token-of-this-hub")
            assert (answer.status_code, reason(answer)) == (401, "login-needed"), route.name


# --- last: the hub dies ---------------------------------------------------------------------


def test_the_hub_dies_and_comes_back(world: HubWorld) -> None:
    broker = world.service.broker
    client = world.browser("fay")
    assert client.get(world.url).status_code == 200
    new_client_token = world.token("fay", [ACCESS, "custom:gpuslice:lease!user"])
    lease = broker.add(make_lease("fay"))
    world.kill_hub()

    # The spawner's and the node's routes do not notice.
    config = world.config
    body = {"reason": "r", "actor": "spawner"}
    stop = f"api/broker/leases/{lease.lease_id}/stop"
    assert world.post(stop, config.broker_token, json=body).status_code == 200
    assert world.get("api/broker/offers", config.broker_token).status_code == 200
    assert world.get("api/health").status_code == 200
    # Whom the hub vouched for a moment ago goes on; whoever it has to be asked about does not.
    assert client.get(world.url).status_code == 200
    answer = world.get("api/me", new_client_token)
    assert (answer.status_code, reason(answer)) == (503, "hub-unavailable")
    assert int(answer.headers["Retry-After"]) > 0

    world.start_hub()
    assert world.get("api/me", new_client_token).status_code == 200
    assert client.get(world.url).status_code == 200


def test_an_offer_that_cannot_be_had_says_why(world: HubWorld) -> None:
    broker = world.service.broker
    broker.offered.append(make_offer(slice="whole", free=0, unavailable="All are taken."))
    assert "All are taken." in world.browser("gil").get(world.url).text
