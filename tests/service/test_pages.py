"""The pages without a hub: what each role sees, that nothing hostile gets out of its place."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from bs4 import BeautifulSoup
from desk_stub import make_entry, make_policy, make_request
from service_stub import make_lease, make_limit, make_offer
from service_world import ACCESS, ServiceThread, make_config

from gpuslice import wire
from gpuslice.broker.moneyviews import PriceView
from gpuslice.service import look
from gpuslice.service.pages import Page, Viewer
from gpuslice.service.routes import ROUTES
from gpuslice.units import GIB, now_us

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"
USER, READER, ADMIN = "u" * 32, "r" * 32, "a" * 32
FORM = {"reason": "because"}


@pytest.fixture
def pages(lonely: ServiceThread) -> ServiceThread:
    """A service that takes three tokens for a user's, a reader's and an administrator's."""
    return introduce(lonely)


def introduce(service: ServiceThread, user: str = "mia") -> ServiceThread:
    own = [ACCESS, f"custom:gpuslice:lease!user={user}", f"custom:gpuslice:stop!user={user}"]
    service.remember(USER, own, user)
    service.remember(READER, [ACCESS, "custom:gpuslice:read-all"], "ta1")
    service.remember(ADMIN, [ACCESS, "custom:gpuslice:admin"], "root1")
    return service


def ask(
    service: ServiceThread, token: str, path: str, method: str = "GET", **kwargs: Any
) -> httpx.Response:
    headers = {"Authorization": f"token {token}"}
    return httpx.request(method, f"{service.url}{path}", headers=headers, trust_env=False, **kwargs)


def soup(answer: httpx.Response, status: int = 200) -> BeautifulSoup:
    assert answer.status_code == status, answer.text
    return BeautifulSoup(answer.text, "html.parser")


def words(answer: httpx.Response, status: int = 200) -> str:
    return " ".join(soup(answer, status).get_text(" ").split())


def add_bill(service: ServiceThread, user: str = "mia", **changes: Any) -> wire.LeaseView:
    """An ended lease with a free minute, a paid hour and a second after its stop."""
    fields: dict[str, Any] = {
        "state": wire.LeaseState.ENDED, "cost_u": 875_001, "writeoff_u": 243,
        "finished_us": 3_601_000_001, "started_us": 1, "stop_reason": "done",
    }  # fmt: skip
    lease = service.broker.add(make_lease(user, **(fields | changes)))
    service.broker.bills[lease.lease_id] = [
        wire.BillLine(from_us=1, til_us=60_000_001, rate_u_per_hour=0, payer="user", amount_u=0,
                      entry_id=None),
        wire.BillLine(from_us=60_000_001, til_us=3_600_000_001, rate_u_per_hour=875_000,
                      payer="user", amount_u=875_001, entry_id=17),
        wire.BillLine(from_us=3_600_000_001, til_us=3_601_000_001, rate_u_per_hour=875_000,
                      payer="writeoff", amount_u=243, entry_id=18),
    ]  # fmt: skip
    return lease


# --- scripts, policy, escaping --------------------------------------------------------------


def fill_with(service: ServiceThread, text: str) -> wire.LeaseView:
    """Put a text wherever somebody else's words can get onto a page."""
    broker, now = service.broker, now_us()
    lease = broker.add(
        make_lease(
            text, text, title=text, device_model=text, stop_reason=text, stop_requested_us=now,
            use=wire.Use(sampled_us=now, reason=text), node_id=text,
        )
    )  # fmt: skip
    add_bill(service, text, server=text, title=text, device_model=text, stop_reason=text)
    broker.offered = [make_offer(title=text, device_model=text, unavailable=text, free=0)]
    broker.limits_left = [text]
    broker.queue.requests = [make_request(text, server=text, reason=text)]
    broker.policies.views = [make_policy("everyone", actor=text, reason=text)]
    broker.money.rows = [make_entry(text, memo=text, actor=text)]
    broker.money.price_views = [
        PriceView(price_list="default", slice="quarter", rate_u_per_hour=1, from_us=1, til_us=None,
                  actor=text),
    ]  # fmt: skip
    broker.limit_views = [make_limit(scope="user", name=text, actor=text)]
    broker.audit_rows = [
        wire.AuditRow(id=1, at_us=1, actor=text, action=text, subject=text, before=text, after=text,
                      reason=text),
    ]  # fmt: skip
    broker.device_views = [make_device(model=text, uuid=text, node_id=text, state_reason=text)]
    broker.health_details = {
        "node_ok": False, "closed_nodes": {text: text}, "not_offered": {text: text},
        "draining": text, "gpu_problem": text,
    }  # fmt: skip
    return lease


def make_device(**changes: Any) -> wire.DeviceView:
    fields: dict[str, Any] = {
        "node_id": "local", "uuid": "GPU-1", "kind": "gpu", "model": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 80 * GIB, "parent_uuid": None, "mig_profile": None, "simulated": True,
        "state": wire.DeviceState.OK, "state_reason": None, "seen_us": now_us(), "leases": [],
    }  # fmt: skip
    return wire.DeviceView(**(fields | changes))


PAGES = [route.path for route in ROUTES if route.is_page and route.method == "GET"]


@pytest.mark.parametrize("plain", [False, True], ids=["hub's look", "plain"])
@pytest.mark.parametrize("path", PAGES)
def test_hostile_words_stay_words_and_no_script_is_in_the_page(
    lonely: ServiceThread, path: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setattr(lonely.app.settings["parts"].look, "_hub_context", lambda *_: 1 / 0)
    introduce(lonely, HOSTILE)
    lease = fill_with(lonely, HOSTILE)
    token = ADMIN if path.startswith("admin") else USER
    answer = ask(lonely, token, path.replace("{lease_id}", lease.lease_id))
    page = soup(answer)
    assert HOSTILE in page.get_text()
    assert "49" not in page.get_text().replace("{{ 7*7 }}", "").split()

    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    nonces = re.findall(r"script-src 'self' 'nonce-([^']+)'", policy)
    assert len(nonces) == 1
    inline = [script for script in page.find_all("script") if not script.get("src")]
    assert [script.get("nonce") for script in inline] == [] if plain else nonces
    for script in page.find_all("script", src=True):
        assert script["src"].startswith(lonely.config.prefix)
    for tag in page.find_all(True):
        hostile = [name for name in tag.attrs if name.startswith("on") or name == "style"]
        assert not hostile, tag
        assert not str(tag.get("href", "")).lower().startswith("javascript:")
    assert page.find("img", src="x") is None


def test_the_nonce_is_new_on_every_page(pages: ServiceThread) -> None:
    policies = {
        ask(pages, USER, "").headers["Content-Security-Policy"].split("nonce-")[1][:24]
        for _ in range(3)
    }
    assert len(policies) == 3


def test_everything_that_a_page_loads_is_there(pages: ServiceThread) -> None:
    page = soup(ask(pages, ADMIN, "admin"))
    loaded = [str(tag["src"]) for tag in page.find_all("script", src=True)]
    loaded += [str(tag["href"]) for tag in page.find_all("link", rel="stylesheet")]
    # What the scripts import.
    loaded.append(f"{pages.config.prefix}static/live.js")
    assert len(loaded) > 4
    for path in loaded:
        root = pages.url.removesuffix(pages.config.prefix)
        answer = httpx.get(f"{root}{path}", trust_env=False)
        assert answer.status_code == 200, path
        kind = "javascript" if path.split("?")[0].endswith(".js") else "css"
        assert kind in answer.headers["Content-Type"]
    for path in ("static/hub/../service.py", "static/hub/js/../../templates/page.html",
                 "static/hub/js/%2e%2e/%2e%2e/templates/page.html", "static/hub/"):  # fmt: skip
        assert ask(pages, ADMIN, path).status_code in (403, 404), path


def test_a_hub_template_that_cannot_be_rendered_leaves_a_plain_page(
    pages: ServiceThread, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "HUB_SHARE", look.STATIC_PATH)  # no templates there
    plain = look.Look(pages.config)
    page = Page("error.html", "404", {"message": "No such page.", "back": ""})
    for _ in range(2):
        html = plain.render(page, Viewer("mia", False)).html
    text = BeautifulSoup(html, "html.parser").get_text(" ")
    assert "No such page." in text
    assert "mia" in text
    warned = [record for record in caplog.records if record.getMessage() == "hub-template-failed"]
    assert len(warned) == 1


def test_with_subdomains_links_lead_to_the_hub_and_files_come_from_us() -> None:
    config = make_config(
        1, hub_host="https://hub.example.org", service_host="https://services.example.org"
    )
    rendered = look.Look(config).render(
        Page("error.html", "x", {"message": "m", "back": ""}), Viewer("mia", True)
    )
    page = BeautifulSoup(rendered.html, "html.parser")
    assert page.find("a", id="logout")["href"] == "https://hub.example.org/hub/logout"  # type: ignore[index]
    assert "img-src 'self' data: https://hub.example.org;" in rendered.policy
    for script in page.find_all("script", src=True):
        assert str(script["src"]).startswith(config.prefix)


# --- My GPU ---------------------------------------------------------------------------------


def test_numbers_that_are_there_and_numbers_that_are_not(pages: ServiceThread) -> None:
    now = now_us()
    use = wire.Use(sampled_us=now, memory_used_bytes=5 * GIB, utilisation_percent=42)
    pages.broker.add(make_lease("mia", "one", use=use))
    why = "no utilisation: not measurable on this GPU generation"
    none = wire.Use(sampled_us=now, memory_used_bytes=None, reason=why)
    pages.broker.add(make_lease("mia", "two", use=none))
    pages.broker.add(make_lease("mia", "three"))
    page = soup(ask(pages, USER, ""))
    cards = {
        card.find(string=re.compile("one|two|three")): card for card in page.select(".gs-card")
    }
    shown = [
        (
            card.select_one("[data-field=memory]").get_text(),  # type: ignore[union-attr]
            card.select_one("[data-field=utilisation]").get_text(),  # type: ignore[union-attr]
            card.select_one("[data-field=why]").get_text(),  # type: ignore[union-attr]
        )
        for card in cards.values()
    ]
    assert shown == [
        ("5 GiB", "42 %", ""),
        ("not available", "not available", why),
        ("not available", "not available", "The GPU host has not measured this server yet."),
    ]
    bar = page.select_one("[data-field=memory-bar]")
    assert bar is not None
    assert (bar["value"], bar["max"]) == (str(5 * GIB), str(20 * GIB))
    assert all("SIMULATED" in card.get_text() for card in cards.values())
    assert all("no real money" in card.get_text() for card in cards.values())


@pytest.mark.parametrize(
    ("state", "sentence", "stoppable"),
    [
        (wire.LeaseState.GRANTED, "It costs nothing until it runs.", True),
        (wire.LeaseState.RUNNING, "Closing its tab does not stop the bill.", True),
        (wire.LeaseState.STOPPING, "You do not pay for the stop itself.", False),
        (wire.LeaseState.SETTLED, "its bill is closed", False),
        (wire.LeaseState.REVOKING, "It costs nothing.", False),
    ],
)
def test_every_state_has_a_sentence(
    pages: ServiceThread, state: wire.LeaseState, sentence: str, stoppable: bool
) -> None:
    stop = None if stoppable else now_us()
    pages.broker.add(make_lease("mia", state=state, stop_requested_us=stop))
    page = soup(ask(pages, USER, ""))
    assert sentence in " ".join(page.get_text(" ").split())
    assert bool(page.select("form[method=post]")) == stoppable


@pytest.mark.parametrize(
    ("limit", "held", "says"),
    [
        (None, 0, "There is no limit"),
        (0, 0, "your limit is 0"),
        (3, 0, "You hold no slice and may hold 3 more"),
        (3, 1, "You hold 1 slice and may hold 2 more"),
        (2, 2, "all that you may hold at a time (2)"),
        (1, 2, "all that you may hold at a time (1)"),
    ],
)
def test_how_many_leases_are_left(
    pages: ServiceThread, limit: int | None, held: int, says: str
) -> None:
    pages.broker.leases_limit = limit
    for number in range(held):
        pages.broker.add(make_lease("mia", f"s{number}"))
    assert says in words(ask(pages, USER, ""))


def test_no_slice_node_away_and_draining_are_said(pages: ServiceThread) -> None:
    text = words(ask(pages, USER, ""))
    assert "You hold no slice now." in text
    assert "cannot be used now" not in text
    pages.broker.health_details = {
        "node_ok": False,
        "closed_nodes": {"local": "the node does not answer (no-socket)"},
        "draining": "shutdown at noon",
    }
    text = words(ask(pages, USER, ""))
    assert "The GPU host cannot be used now (the node does not answer (no-socket))." in text
    assert "No new servers are started: shutdown at noon." in text


def test_past_leases_are_paged_and_link_to_their_bills(pages: ServiceThread) -> None:
    mine = [
        pages.broker.add(make_lease("mia", state=wire.LeaseState.ENDED)).lease_id for _ in range(25)
    ]
    pages.broker.add(make_lease("bob", state=wire.LeaseState.ENDED))
    seen, path = [], ""
    while path is not None:
        page = soup(ask(pages, USER, path))
        seen += [str(link["href"]).rsplit("/", 1)[1] for link in page.select("#past table a")]
        older = page.find("a", string="Older")
        path = str(older["href"]).removeprefix(pages.config.prefix) if older else None  # type: ignore[index]
    assert seen == mine[::-1]


# --- bills ----------------------------------------------------------------------------------


def test_a_bill_is_exact(pages: ServiceThread) -> None:
    lease = add_bill(pages)
    page = soup(ask(pages, USER, f"leases/{lease.lease_id}"))
    rows = [
        [" ".join(cell.get_text().split()) for cell in row.find_all("td")]
        for row in page.select("tbody tr")
    ]
    assert [row[2:] for row in rows] == [
        ["0:01:00.000000", "free", "you", "none, it is free", "0.000000 EUR"],
        ["0:59:00.000000", "0.875 EUR per hour", "you", "17", "0.875001 EUR"],
        ["0:00:01.000000", "0.875 EUR per hour",
         "the platform, because the stop was asked for before", "18", "0.000243 EUR"],
    ]  # fmt: skip
    assert rows[0][:2] == ["1970-01-01 00:00:00.000001", "1970-01-01 00:01:00.000001"]
    sums = " ".join(page.select(".gs-sums")[0].get_text(" ").split())
    assert "Paid by the platform, not by you 0.000243 EUR" in sums
    assert "You pay 0.875001 EUR – no real money" in sums
    assert "SIMULATED" in page.get_text()

    same = wire.Bill.model_validate(ask(pages, USER, f"api/leases/{lease.lease_id}/bill").json())
    assert same == wire.Bill(lease=lease, lines=pages.broker.bills[lease.lease_id], corrected_u=0)


@pytest.mark.parametrize(
    ("corrected_u", "said"),
    [
        (875_001, "Given back 0.875001 EUR You pay 0.000000 EUR"),
        (500_000, "Given back 0.500000 EUR You pay 0.375001 EUR"),
        (-2, "Charged in addition 0.000002 EUR You pay 0.875003 EUR"),
    ],
)
def test_what_was_corrected_is_not_paid(pages: ServiceThread, corrected_u: int, said: str) -> None:
    lease = add_bill(pages)
    pages.broker.corrected[lease.lease_id] = corrected_u
    assert said in words(ask(pages, USER, f"leases/{lease.lease_id}"))


@pytest.mark.parametrize(("user", "may"), [("ada", True), ("ada/7", False)])
def test_a_closed_account_is_offered_no_credit(pages: ServiceThread, user: str, may: bool) -> None:
    lease = add_bill(pages, user)
    said = words(ask(pages, ADMIN, f"leases/{lease.lease_id}"))
    assert "Give back…" in said
    assert ("Give credit…" in said) == may


def test_what_runs_since_the_last_line_is_open(pages: ServiceThread) -> None:
    lease = add_bill(pages, state=wire.LeaseState.RUNNING, cost_u=900_000, finished_us=None)
    text = words(ask(pages, USER, f"leases/{lease.lease_id}"))
    assert "Still open, no entry yet 0.024999 EUR" in text
    assert "You pay 0.900000 EUR" in text


def test_a_real_gpus_bill_is_not_called_simulated(pages: ServiceThread) -> None:
    lease = add_bill(pages, simulated=False)
    text = words(ask(pages, USER, f"leases/{lease.lease_id}"))
    assert "SIMULATED" not in text
    assert "no real money" not in text


@pytest.mark.parametrize("path", ["api/leases/{}/bill", "leases/{}"])
def test_bills_of_others_and_of_nobody_look_the_same(pages: ServiceThread, path: str) -> None:
    theirs = add_bill(pages, "bob")
    answers = [
        ask(pages, USER, path.format(lease_id))
        for lease_id in (theirs.lease_id, "f" * 32, "not-an-id", "..%2f..%2fetc")
    ]
    assert {answer.status_code for answer in answers} == {404}
    without_nonce = {re.sub(r'nonce="[^"]+"', "", answer.text) for answer in answers}
    assert len(without_nonce) == 1
    for token in (READER, ADMIN):
        assert ask(pages, token, path.format(theirs.lease_id)).status_code == 200


# --- administrators -------------------------------------------------------------------------


def test_who_sees_which_navigation(pages: ServiceThread) -> None:
    lease = add_bill(pages, "mia")
    for token, sees in ((USER, False), (READER, True), (ADMIN, True)):
        page = soup(ask(pages, token, f"leases/{lease.lease_id}"))
        assert (page.find("a", string="GPU admin") is not None) == sees
        assert page.find("a", string="My GPU") is not None
        assert page.find("a", id="logout") is not None


def test_a_reader_sees_everything_and_no_form(pages: ServiceThread) -> None:
    pages.broker.add(make_lease("bob", "gpu"))
    pages.broker.device_views = [make_device()]
    for path in ("admin", "admin/limits", "admin/audit"):
        page = soup(ask(pages, READER, path))
        assert page.select("form[method=post]") == []
        assert "You may read all of this, and change nothing." in page.get_text()
        assert "change nothing" not in ask(pages, ADMIN, path).text


def test_a_user_and_a_reader_change_nothing(pages: ServiceThread) -> None:
    theirs = pages.broker.add(make_lease("bob"))
    limit = {"scope": "default", "value": "9", "version": "1", "reason": "because"}
    body = {"scope": "default", "value": 9, "version": 1, "reason": "because"}
    for token in (USER, READER):
        stop = ask(pages, token, f"admin/leases/{theirs.lease_id}/stop", "POST", data=FORM)
        assert "custom:gpuslice:admin" in words(stop, 403)
        assert ask(pages, token, "admin/limits", "POST", data=limit).status_code == 403
        assert ask(pages, token, "api/admin/limits", "PUT", json=body).status_code == 403
    for path in ("admin", "admin/limits", "admin/audit", "api/admin/limits", "api/admin/audit"):
        assert ask(pages, USER, path).status_code == 403, path
    assert pages.broker.calls == []


def test_an_administrator_stops_with_a_reason_and_only_with_one(pages: ServiceThread) -> None:
    theirs = pages.broker.add(make_lease("bob"))
    path = f"admin/leases/{theirs.lease_id}/stop"
    for form in ({}, {"reason": ""}, {"reason": "   "}, {"reason": "x" * 501},
                 {"reason": "x", "actor": "bob"}):  # fmt: skip
        assert ask(pages, ADMIN, path, "POST", data=form).status_code == 400, form
    assert ask(pages, ADMIN, path, "POST", json=FORM).status_code == 415
    assert pages.broker.calls == []
    answer = ask(pages, ADMIN, path, "POST", data={"reason": " needed <b> "})
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{pages.config.prefix}admin")
    assert pages.broker.calls == [("stop", theirs.lease_id, "needed <b>", "root1", True)]
    gone = ask(pages, ADMIN, f"admin/leases/{'f' * 32}/stop", "POST", data=FORM)
    assert "There is no such lease." in words(gone, 404)


def test_limits_are_edited_where_they_are_shown(pages: ServiceThread) -> None:
    page = soup(ask(pages, ADMIN, "admin/limits"))
    form = page.select_one("#limits form")
    assert form is not None
    sent = {
        str(field["name"]): str(field.get("value", ""))
        for field in form.find_all("input")
        if field.get("type") != "checkbox"
    }
    sent.pop("_xsrf")
    sent.pop("once")
    assert sent == {"scope": "default", "name": "", "version": "1", "value": "2", "reason": ""}
    answer = ask(pages, ADMIN, "admin/limits", "POST", data=sent | {"value": "5", "reason": "r"})
    assert answer.status_code == 303
    assert [limit.value for limit in pages.broker.limit_views] == [5]

    # The same form again: it was made for a version that is gone.
    stale = ask(pages, ADMIN, "admin/limits", "POST", data=sent | {"value": "9", "reason": "r"})
    page = soup(stale, 409)
    assert "Somebody else changed it." in page.get_text()
    assert page.find("a", string="Back")["href"] == f"{pages.config.prefix}admin/limits"  # type: ignore[index]
    body = {"scope": "default", "value": 9, "version": 1, "reason": "r"}
    stale = ask(pages, ADMIN, "api/admin/limits", "PUT", json=body)
    assert wire.Refusal.model_validate(stale.json()).reason == "stale-version"
    assert stale.status_code == 409
    assert [limit.value for limit in pages.broker.limit_views] == [5]

    new = {"scope": "group_member", "name": " lab ", "value": "", "unlimited": "yes", "reason": "r"}
    assert ask(pages, ADMIN, "admin/limits", "POST", data=new).status_code == 303
    order = pages.broker.calls[-1][1]
    assert order == wire.SetLimit(
        scope="group_member", name="lab", value=None, version=None, reason="r"
    )
    assert "unlimited" in words(ask(pages, READER, "admin/limits"))


@pytest.mark.parametrize(
    "change",
    [{"value": ""}, {"value": "-1"}, {"value": "1e3"}, {"value": "NaN"}, {"value": "9" * 30},
     {"reason": ""}, {"scope": "group"}, {"version": "x"}, {"extra": "1"}, {"unlimited": "no"},
     {"name": "x" * 256}, {"name": "a\0b"}],
    ids=str,
)  # fmt: skip
def test_a_wrong_form_is_400_and_changes_nothing(
    pages: ServiceThread, change: dict[str, str]
) -> None:
    form = {"scope": "default", "value": "3", "version": "1", "reason": "because"} | change
    answer = ask(pages, ADMIN, "admin/limits", "POST", data=form)
    field = next(iter(change))
    assert answer.status_code == 400
    assert field in words(answer, 400) or "null character" in answer.text
    assert pages.broker.calls == []


@pytest.mark.parametrize("raw", [b"reason=a&reason=b", b"reason=%ff", b"reason=\xff", b"&" * 100])
def test_a_broken_form_is_400(pages: ServiceThread, raw: bytes) -> None:
    theirs = pages.broker.add(make_lease("bob"))
    answer = httpx.post(
        f"{pages.url}admin/leases/{theirs.lease_id}/stop",
        content=raw,
        headers={
            "Authorization": f"token {ADMIN}",
            "Content-Type": "application/x-www-form-urlencoded",
        },
        trust_env=False,
    )
    assert answer.status_code == 400
    assert pages.broker.calls == []


def users_shown(answer: httpx.Response) -> list[str]:
    return [str(head.find(string=True)) for head in soup(answer).select("#leases tbody th")]


def test_live_leases_are_sorted_and_paged_by_the_server(pages: ServiceThread) -> None:
    for number in range(60):
        pages.broker.add(
            make_lease(f"user{number:02}", granted_us=1_000 + number, cost_u=(number * 7) % 60)
        )
    assert users_shown(ask(pages, READER, "admin"))[0] == "user59"
    by_user = users_shown(ask(pages, READER, "admin?sort=user"))
    assert by_user == [f"user{number:02}" for number in range(50)]
    rest = users_shown(ask(pages, READER, "admin?sort=user&page=2"))
    assert rest == [f"user{number:02}" for number in range(50, 60)]
    assert users_shown(ask(pages, READER, "admin?sort=user&page=99")) == rest
    assert users_shown(ask(pages, READER, "admin?sort=cost"))[0] == "user17"
    assert users_shown(ask(pages, READER, "admin?user=user07&sort=slice")) == ["user07"]
    assert "This user holds no slice now." in words(ask(pages, READER, "admin?user=nobody"))
    assert ask(pages, READER, "admin?sort=secret").status_code == 400


def test_devices_with_their_state_use_and_holders(pages: ServiceThread) -> None:
    lease = pages.broker.add(make_lease("bob", "gpu"))
    pages.broker.device_views = [
        make_device(leases=[lease.lease_id, "e" * 32], memory_used_bytes=GIB,
                    utilisation_percent=7),
        make_device(uuid="GPU-2", state=wire.DeviceState.QUARANTINED, state_reason="not clean",
                    memory_bytes=None),
    ]  # fmt: skip
    text = words(ask(pages, READER, "admin"))
    assert "1 GiB, 7 %" in text
    assert "bob, gpu ; lease eeeeeeee" in text
    assert "quarantined: nothing new is put on it not clean" in text
    assert "memory not available, utilisation not available" in text


def test_the_health_line(pages: ServiceThread) -> None:
    pages.broker.health_details = {"reconcile_age_s": 3.0, "not_offered": {"mig": "no such MIG"}}
    text = words(ask(pages, READER, "admin"))
    assert "All is well. GPU host: reachable. Last compared with it: 3 s ago." in text
    assert "1 slice type is not offered mig : no such MIG" in text
    for trouble in (
        {"node_ok": False, "closed_nodes": {"n1": "it rebooted"}},
        {"reconcile_age_s": 300.0},
        {"reconcile_age_s": None},
        {"draining": "shutdown"},
        {"database_ok": False},
    ):
        pages.broker.health_details = {"reconcile_age_s": 3.0} | trouble
        text = words(ask(pages, READER, "admin"))
        assert "Something needs a look." in text, trouble
        assert "it rebooted" in text or "closed_nodes" not in trouble


def test_the_audit_is_paged_and_in_words(pages: ServiceThread) -> None:
    pages.broker.audit_rows = [
        wire.AuditRow(
            id=number, at_us=number, actor=f"a{number}", action="quota.set",
            subject="group_member/4/concurrent_slices//life", before="1", after="null", reason=None,
        )
        for number in range(1, 121)
    ]  # fmt: skip
    page = soup(ask(pages, READER, "admin/audit"))
    assert len(page.select("tbody tr")) == 50
    first = " ".join(page.select("tbody tr")[0].get_text(" ").split())
    assert "a120 set a limit Each member of group, account 4 1 → unlimited not said" in first
    older = page.find("a", string="Older")
    assert older is not None
    assert str(older["href"]).endswith("?before=71")  # type: ignore[index]

    seen: list[int] = []
    query: dict[str, int] | None = {"limit": 50}
    while query is not None:
        answer = ask(pages, READER, "api/admin/audit", params=query).json()
        seen += [row["id"] for row in answer["rows"]]
        query = answer["next"] and {"limit": 50, "before": answer["next"]}
    assert seen == list(range(120, 0, -1))


def test_groups_of_the_hubs_answer_reach_the_broker(lonely: ServiceThread) -> None:
    scopes = [ACCESS, "custom:gpuslice:lease!user=mia"]
    lonely.remember(USER, scopes, "mia", groups=["lab", "course"])
    for path in ("api/me", ""):
        lonely.broker.groups = ()
        assert ask(lonely, USER, path).status_code == 200
        assert lonely.broker.groups == ("lab", "course")
