"""The pages of queue, policies, prices and money on the real broker: what people do, by forms."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bs4 import BeautifulSoup, Tag
from service_world import ACCESS, ServiceThread, closed_port, make_config

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from fakenode import gpu
from gpuslice import wire
from gpuslice.broker.core import HubUser
from gpuslice.service import quotapagecalls
from gpuslice.units import HOUR_US, MINUTE_US
from ledgerworld import World, sqlite_ledger
from quotaworld import finish, passes, set_policy, spawn

MIA, BOB, READER, ADMIN = "m" * 32, "b" * 32, "r" * 32, "a" * 32


class Everybody:
    """A hub that knows everybody."""

    async def stop_server(self, user: str, server: str) -> None: ...

    async def start_server(self, user: str, server: str, options: Any) -> None: ...

    async def user(self, name: str) -> HubUser:
        return HubUser(name, (), {})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(sqlite_ledger(tmp_path / "l.sqlite"), devices=[gpu("GPU-a", 0)], hub=Everybody())
    yield made
    assert made.problems() == []
    made.close()


@pytest.fixture
def service(world: World) -> Iterator[ServiceThread]:
    """The service's pages over that world's broker; the test's own loop drives the broker."""
    thread = ServiceThread(make_config(closed_port(), "/"))
    thread.broker = world.live()  # type: ignore[assignment]
    with thread:
        for token, name in ((MIA, "mia"), (BOB, "bob")):
            own = [f"custom:gpuslice:{may}!user={name}" for may in ("lease", "stop")]
            thread.remember(token, [ACCESS, *own], name)
        thread.remember(READER, [ACCESS, "custom:gpuslice:read-all"], "ta1")
        thread.remember(ADMIN, [ACCESS, "custom:gpuslice:admin"], "root1")
        yield thread


def ask(
    service: ServiceThread, token: str, path: str, form: dict[str, str] | None = None
) -> httpx.Response:
    headers = {"Authorization": f"token {token}"}
    method = "GET" if form is None else "POST"
    return httpx.request(
        method, f"{service.url}{path}", headers=headers, data=form, trust_env=False
    )


def page(service: ServiceThread, token: str, path: str = "") -> BeautifulSoup:
    answer = ask(service, token, path)
    assert answer.status_code == 200, answer.text
    return BeautifulSoup(answer.text, "html.parser")


def words(found: BeautifulSoup | Tag | None) -> str:
    assert found is not None
    return " ".join(found.get_text(" ").split())


def send(
    service: ServiceThread, token: str, found: BeautifulSoup | Tag, button: str, **filled: str
) -> httpx.Response:
    """Fill in the form that has this button, as a browser sends it, and press it.

    Each time as from a tab of its own; the same form twice is in `test_page_forms`.
    """
    pressed = next(one for one in found.find_all("button") if words(one) == button)
    form = pressed.find_parent("form")
    assert form is not None and form["method"] == "post"
    fields: dict[str, str] = {}
    for one in form.find_all(["input", "textarea", "select"]):
        name = str(one["name"])
        fields[name] = one.get_text() if one.name == "textarea" else str(one.get("value", ""))
        if one.name == "select":
            fields[name] = str(one.find("option")["value"])
    assert filled.keys() <= fields.keys() and len(fields["once"]) == 32
    fields["once"] = secrets.token_hex(16)
    if pressed.get("name"):
        fields[str(pressed["name"])] = str(pressed["value"])
    path = str(form["action"]).removeprefix(service.config.prefix)
    return ask(service, token, path, fields | filled)


def gone_to(answer: httpx.Response, service: ServiceThread) -> str:
    assert answer.status_code == 303, answer.text
    return answer.headers["Location"].removeprefix(service.config.prefix)


def join(world: World, user: str, name: str) -> wire.RequestView:
    return world.do(world.live().queue.join(wire.JoinFor(user=user, slice=name)))


def mine(world: World, user: str) -> wire.RequestView:
    return world.do(world.live().queue.mine(user))[0]


# --- My GPU -----------------------------------------------------------------------------------


def test_a_place_in_line_on_my_gpu_with_all_that_can_be_done(
    service: ServiceThread, world: World
) -> None:
    lease = spawn(world, "ada", "whole", [])
    join(world, "mia", "whole")
    home = page(service, MIA)
    said = words(home.find(id="queue"))
    assert "You are number 1 of 1 in line. Nobody can know yet when your turn comes" in said
    assert "You are told when it is your turn" in said

    assert gone_to(send(service, MIA, home, "Start by itself"), service) == ""
    assert mine(world, "mia").auto_start
    # What was read before is not what is there now.
    stale = send(service, MIA, home, "Start by itself")
    assert stale.status_code == 409 and "look at it again" in words(
        BeautifulSoup(stale.text, "html.parser")
    )

    home = page(service, MIA)
    assert "starts by itself" in words(home.find(id="queue"))
    assert gone_to(send(service, MIA, home, "Change", slice="half"), service) == ""
    assert mine(world, "mia").slice == "half"

    # Nobody else sees it, and nobody else can leave for her.
    assert "In line for" not in words(page(service, BOB).find("main"))
    stolen = ask(service, BOB, f"queue/{mine(world, 'mia').request_id}/leave", {"_xsrf": ""})
    assert stolen.status_code == 404
    assert gone_to(send(service, MIA, page(service, MIA), "Leave the queue"), service) == ""
    assert mine(world, "mia").state == "left"
    finish(world, lease)


def test_a_turn_is_shown_with_its_end_and_can_be_given_back(
    service: ServiceThread, world: World
) -> None:
    lease = spawn(world, "ada", "whole", [])
    join(world, "mia", "whole")
    world.stop(lease)
    world.node.finish(world.node.servers[lease])
    passes(world, 20_000_000, step_us=5_000_000)
    request = mine(world, "mia")
    assert request.state == "offered" and request.offer_til_us is not None
    home = page(service, MIA)
    said = words(home.find(id="queue"))
    assert "The slice is reserved for you until" in said and "It costs nothing" in said
    # What is reserved is no server that starts, and has one way to be given back.
    live = words(home.find(id="live"))
    assert "reserved for you" in live and "The server is starting" not in live
    assert home.find("button", string="Stop the server now") is None

    assert gone_to(send(service, MIA, home, "Give it back"), service) == ""
    world.settle_everything(3)
    assert mine(world, "mia").state == "left"
    assert "1 of 1" in words(page(service, BOB).find(id="offers"))


def test_what_is_used_and_left_and_every_row_of_it(service: ServiceThread, world: World) -> None:
    set_policy(world, "user", "mia", {
        "each": {"money": [{"at_most": "50", "per": "month"}], "prepaid": True},
    })  # fmt: skip
    lease_page = f"{'0' * 32}"
    assert ask(service, ADMIN, f"admin/leases/{lease_page}/credit",
               {"amount": "5", "reason": "x"}).status_code == 404  # fmt: skip
    world.do(world.live().money.give_credit(_credit("mia"), "root1"))
    lease = spawn(world, "mia", "whole", [])
    passes(world, 2 * HOUR_US, step_us=10 * MINUTE_US)
    finish(world, lease)
    home = page(service, MIA)
    said = words(home.find(id="used"))
    assert "43.00 of 50.00 EUR a month left (your own limit): 7.00 used" in said
    assert "Credit left: 13.0000 EUR" in said
    assert "2.00 GPU-hours" in said
    rows = page(service, MIA, "entries").select("tbody tr")
    assert rows and "lease" not in words(rows[-1])
    text = ask(service, MIA, "api/entries/export?form=csv").text
    assert text.count("\n") == len(rows) + 1
    # Nobody else's.
    assert not page(service, BOB, "entries").select("tbody tr")


def _credit(name: str) -> Any:
    from gpuslice.broker.moneyviews import GiveCredit

    return GiveCredit(whose="user", name=name, amount_u=20_000_000, reason="a start")


def test_the_deadline_is_on_the_card(service: ServiceThread, world: World) -> None:
    set_policy(world, "user", "mia", {"each": {"session_hours": "1"}})
    lease = spawn(world, "mia", "quarter", [])
    passes(world, 10 * MINUTE_US)
    view = world.view(lease)
    assert view.deadline_us is not None
    said = words(page(service, MIA).find(id="live"))
    assert "As things are it is stopped at" in said
    assert "A session lasts 1 hour (your own limit)" in said
    finish(world, lease)


# --- policies ---------------------------------------------------------------------------------


def test_a_policy_is_written_changed_and_removed_on_a_page(
    service: ServiceThread, world: World
) -> None:
    empty = page(service, ADMIN, "admin/policy?kind=group&name=students")
    assert "There is no such policy now" in words(empty)
    wanted = """{"each": {"slices": 1, "slice_types": ["quarter"],
                "gpu_hours": [{"at_most": "20", "per": "week"}]},
                "total": {"money": [{"at_most": "50", "per": "month"}]}}"""
    went = send(service, ADMIN, empty, "Save from now on", document=wanted, reason="the course")
    assert gone_to(went, service) == "admin/policy?kind=group&name=students"

    shown = page(service, ADMIN, "admin/policy?kind=group&name=students")
    said = words(shown)
    for line in ("each: slices 1", "each: slice types quarter", "each: GPU hours 20 per week",
                 "in total: money 50 per month"):  # fmt: skip
        assert line in said
    assert words(page(service, ADMIN, "admin/policies")).count("the course") == 1

    # A mistake keeps what was there and says where it is; an old page is refused.
    for text, told in (('{"each": {"slices": -1}}', "each.slices"), ("{", "not JSON"),
                       ('{"all": {}}', "all")):  # fmt: skip
        wrong = send(service, ADMIN, shown, "Save from now on", document=text, reason="r")
        assert wrong.status_code == 422 and told in wrong.text
    stale = send(service, ADMIN, empty, "Save from now on", document="{}", reason="r")
    assert stale.status_code == 409

    removed = send(service, ADMIN, shown, "Remove it", reason="term over")
    assert gone_to(removed, service) == "admin/policies"
    after = page(service, ADMIN, "admin/policy?kind=group&name=students")
    assert "the course" in words(after.find("table"))
    acts = world.do(world.live().audit(10, None))
    assert [(one.actor, one.action, one.reason) for one in acts[:2]] == [
        ("root1", "policy.remove", "term over"), ("root1", "policy.set", "the course"),
    ]  # fmt: skip
    record = words(page(service, ADMIN, "admin/audit").find("table"))
    assert "nothing → each: " in record and "in total: money 50 per month → nothing" in record
    assert "each: GPU hours 20 per week; " in record


@pytest.mark.parametrize(
    ("whose", "said"),
    [
        ("kind=everyone", "everyone"),
        ("kind=group&name=students", "group students"),
        ("kind=user&name=ada%27s+twin", "user 'ada'\"'\"'s twin'"),
    ],
)
def test_the_command_for_older_versions_works_as_it_is_printed(
    service: ServiceThread, monkeypatch: pytest.MonkeyPatch, whose: str, said: str
) -> None:
    monkeypatch.setattr(quotapagecalls, "VERSIONS_SHOWN", 1)
    for slices in (1, 2):
        shown = page(service, ADMIN, f"admin/policy?{whose}")
        document = f'{{"each": {{"slices": {slices}}}}}'
        went = send(service, ADMIN, shown, "Save from now on", document=document, reason="r")
        assert went.status_code == 303, went.text
    shown = page(service, ADMIN, f"admin/policy?{whose}")
    assert f"Older versions: gpuslice quota show {said} --history." in words(shown).replace(
        "history .", "history."
    )


@pytest.mark.parametrize("which", ["policies", "limits"])
def test_a_long_list_is_walked_and_looked_through(
    service: ServiceThread, world: World, which: str
) -> None:
    names = [f"user{number:03}" for number in range(120)]
    for name in names:
        set_policy(world, "user", name, {"each": {"slices": 1}})
    path, seen, looks = f"admin/{which}", [], 0
    while path:
        found = page(service, ADMIN, path)
        seen += [words(one) for one in found.select(f"#{which} tbody th")]
        following = found.find("a", string="Next")
        first = found.find("a", string="First")
        assert (first is None) == (looks == 0)
        path = str(following["href"]).removeprefix(service.config.prefix) if following else ""
        looks += 1
    assert seen == ["Everybody", *(f"User {name}" for name in names)]
    assert looks == {"policies": 2, "limits": 3}[which]
    some = page(service, ADMIN, f"admin/{which}?find=ER11")
    shown = [words(one) for one in some.select(f"#{which} tbody th")]
    assert shown == [f"User user{number}" for number in range(110, 120)]
    assert "has such a name" in words(page(service, ADMIN, f"admin/{which}?find=nobody"))


def test_who_may_only_read_sees_the_words_and_no_form(service: ServiceThread, world: World) -> None:
    join_lease = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    for path in ("admin/policies", "admin/policy", "admin/queue", "admin/prices"):
        found = page(service, READER, path)
        assert "change nothing" in words(found)
        assert not found.select("main form[method=post], main textarea")
        assert ask(service, MIA, path).status_code == 403
    for path, form in (
        ("admin/policy", {"document": "{}", "reason": "r"}),
        ("admin/prices", {"slice": "cpu", "price_list": "default", "rate": "1", "reason": "r"}),
        (f"admin/queue/{mine(world, 'bob').request_id}/remove", {"reason": "r"}),
        (f"admin/leases/{join_lease}/refund", {"reason": "r"}),
        (f"admin/leases/{join_lease}/credit", {"amount": "1", "reason": "r"}),
    ):
        for token in (READER, MIA):
            assert ask(service, token, path, form).status_code == 403, path
    finish(world, join_lease)


# --- queue, prices, money -----------------------------------------------------------------------


def test_an_administrator_takes_somebody_out_of_the_queue(
    service: ServiceThread, world: World
) -> None:
    lease = spawn(world, "ada", "whole", [])
    join(world, "bob", "whole")
    found = page(service, ADMIN, "admin/queue")
    assert "Nobody can know yet when the turn comes" in words(found.find("tbody"))
    went = send(service, ADMIN, found, "Remove bob from the queue", reason="the room is closed")
    assert gone_to(went, service) == "admin/queue"
    assert (mine(world, "bob").state, mine(world, "bob").reason) == ("left", "the room is closed")
    assert "Nobody waits." in words(page(service, ADMIN, "admin/queue"))
    finish(world, lease)


def test_a_price_is_looked_at_and_then_announced(service: ServiceThread, world: World) -> None:
    lease = spawn(world, "ada", "whole", [])
    asked = "admin/prices?slice=whole&rate=4.25&price_list=default&from_utc=2099-01-31T08:00"
    found = page(service, ADMIN, asked)
    first = words(found.select_one(".gs-card"))
    assert "Announce 4.25 EUR per hour for whole?" in first
    assert "from 2099-01-31 08:00:00 UTC on. It pays 3.50 EUR per hour now." in first
    assert "1 running lease would pay it" in first and lease[:8] in first
    prices = len(page(service, ADMIN, "admin/prices").select("tbody tr"))

    went = send(service, ADMIN, found, "Announce it", reason="power costs more")
    assert gone_to(went, service) == "admin/prices"
    rows = [words(row) for row in page(service, ADMIN, "admin/prices").select("tbody tr")]
    assert len(rows) == prices + 1
    assert [row for row in rows if "4.25 EUR per hour" in row and "announced" in row]
    # One that begins earlier holds until then; none begins at the very same moment.
    found = page(service, ADMIN, asked.replace("4.25", "5").replace("2099", "2098"))
    first = words(found.select_one(".gs-card"))
    assert "announced already and follows it at 2099-01-31 08:00:00 UTC." in first
    taken = "2099-01-31T08:00"
    again = send(service, ADMIN, found, "Announce it", reason="once more", from_utc=taken)
    assert again.status_code == 409
    for bad in ("rate=-1", "rate=x", "rate=1&from_utc=tomorrow"):
        assert ask(service, ADMIN, f"admin/prices?slice=whole&{bad}").status_code == 400
    for never in ("0001-01-01", "9999-12-31", "0001-01-01T00:00%2B14:00", "1969-12-31"):
        refused = ask(service, ADMIN, f"admin/prices?slice=whole&rate=1&from_utc={never}")
        assert refused.status_code == 400 and "between the years 1970 and 9999" in refused.text
    east = page(service, ADMIN, "admin/prices?slice=whole&rate=1&from_utc=2099-01-31T08:00%2B05:00")
    assert "from 2099-01-31 03:00:00 UTC on" in words(east.select_one(".gs-card"))
    finish(world, lease)


def test_what_a_lease_cost_goes_back_and_credit_is_given_on_its_bill(
    service: ServiceThread, world: World
) -> None:
    lease = spawn(world, "mia", "whole", [])
    passes(world, HOUR_US, step_us=10 * MINUTE_US)
    finish(world, lease)
    bill = page(service, ADMIN, f"leases/{lease}")
    assert not page(service, MIA, f"leases/{lease}").select("main form")
    assert gone_to(
        send(service, ADMIN, bill, "Give it back", amount="1.5", reason="a fault"), service
    ) == f"leases/{lease}"  # fmt: skip
    too_much = send(service, ADMIN, bill, "Give it back", amount="100", reason="a fault")
    assert too_much.status_code == 409 and "not paid for this lease" in too_much.text
    assert send(service, ADMIN, bill, "Give credit", amount="0", reason="x").status_code == 400
    assert gone_to(
        send(service, ADMIN, bill, "Give credit", amount="3", reason="sorry"), service
    ) == f"leases/{lease}"  # fmt: skip
    usage = world.do(world.live().money.usage("user", "mia"))
    assert usage.credit_u == 3_000_000
    rows = [words(row) for row in page(service, MIA, "entries").select("tbody tr")]
    # The newest payment goes back first; what is more comes from the one before.
    back = [row.rpartition("+")[2] for row in rows if "a fault" in row]
    assert back == ["0.722222 EUR", "0.777778 EUR"]
