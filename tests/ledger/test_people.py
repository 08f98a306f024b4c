"""The life of accounts: names, groups above groups, users the hub has no more, whole lists."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuslice import wire
from gpuslice.broker import people
from gpuslice.broker.core import HubUser
from gpuslice.broker.moneyviews import GiveCredit
from gpuslice.broker.peopleviews import (
    AccountDetail,
    CloseMissing,
    CloseUser,
    Imported,
    ImportPeople,
    RenameUser,
    SetParent,
)
from gpuslice.broker.queuedesk import JoinFor
from gpuslice.broker.verify import verify
from gpuslice.errors import Refused
from gpuslice.ledger import accounts, credit
from gpuslice.ledger.database import Database
from gpuslice.ledger.tables import Account, Audit, Entry
from gpuslice.quotas import policies
from gpuslice.quotas.chain import MAX_DEPTH
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.units import HOUR_US, MINUTE_US
from ledgerworld import START, World, sqlite_ledger
from quotaworld import finish, passes, refused, set_policy, spawn

DAY_US = 24 * HOUR_US


class FakeHub:
    """A hub's users, by name with the moment each was made (None: it does not say)."""

    def __init__(self) -> None:
        self.made: dict[str, int | None] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.down = False

    async def stop_server(self, user: str, server: str) -> None:
        raise RuntimeError("not in these tests: the node stops servers")

    async def start_server(self, user: str, server: str, options: dict[str, str]) -> None:
        raise RuntimeError("not in these tests")

    async def user(self, name: str) -> HubUser | None:
        return next((user for user in await self.users() if user.name == name), None)

    async def users(self) -> Sequence[HubUser]:
        if self.down:
            raise RuntimeError("down")
        return [
            HubUser(name, self.groups.get(name, ()), {}, made) for name, made in self.made.items()
        ]


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, hub=FakeHub())
    yield made
    assert made.problems() == []
    made.close()


def hub(world: World) -> FakeHub:
    assert isinstance(world.hub, FakeHub)
    return world.hub


def account(world: World, user: str) -> AccountDetail:
    return world.do(world.live().people.named("user", user))


def rename(world: World, old: str, new: str, **changes: Any) -> AccountDetail:
    body = {"to": new, "version": account(world, old).version, "reason": "married"} | changes
    return world.do(world.live().people.rename(old, RenameUser(**body), "root"))


def close(world: World, user: str, **changes: Any) -> AccountDetail:
    body = {"version": account(world, user).version, "reason": "left"} | changes
    return world.do(world.live().people.close(user, CloseUser(**body), "root"))


def under(world: World, group: str, parent: str | None) -> AccountDetail:
    found = world.do(world.live().people.all("group", "open", group, 0, 100)).accounts
    version = next((one.version for one in found if one.name == group), None)
    body = SetParent(parent=parent, version=version, reason="a faculty")
    return world.do(world.live().people.set_parent(group, body, "root"))


def follow(world: World) -> people.Followed | None:
    return world.do(world.live().people.follow())


def give(world: World, user: str, amount_u: int) -> None:
    def work(session: sa.orm.Session) -> None:
        found = policies.account_of(session, "user", user, world.now)
        credit.give(session, found, amount_u, key=f"{user}{world.now}", actor="root",
                    reason="a test", now=world.now)  # fmt: skip

    world.database.write(work)


def used_for_an_hour(world: World, user: str) -> str:
    lease_id = spawn(world, user, "quarter", [])
    passes(world, HOUR_US, 20 * MINUTE_US)
    finish(world, lease_id)
    return lease_id


def acts(world: World, action: str) -> list[tuple[str, str | None, str | None, str | None]]:
    return world.database.read(
        lambda s: [
            (row.actor, row.before, row.after, row.reason)
            for row in s.scalars(sa.select(Audit).where(Audit.action == action))
        ]
    )


# --- renames ------------------------------------------------------------------------------------


def test_a_renamed_user_keeps_everything_and_leaves_nothing(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"slices": 1, "slice_types": ["quarter"]}})
    give(world, "ada", 5_000_000)
    lease_id = used_for_an_hour(world, "ada")
    before = account(world, "ada")
    after = rename(world, "ada", "ada.lovelace")
    assert (after.account_id, after.name) == (before.account_id, "ada.lovelace")
    assert (after.spent_u, after.credit_u) == (before.spent_u, before.credit_u)
    assert after.spent_u > 0 and after.credit_u == 5_000_000 - after.spent_u
    assert [(one.name, one.til_us is None) for one in after.names] == [
        ("ada", False), ("ada.lovelace", True),
    ]  # fmt: skip
    # The limits hold under the new name, and the history is found under it.
    assert refused(lambda: spawn(world, "ada.lovelace", "whole", [])).refusal.reason == (
        "slice-not-allowed"
    )
    found, _ = world.do(world.live().leases("ada.lovelace", None, 10, None))
    assert [one.lease_id for one in found] == [lease_id]
    # Whoever is called ada next is somebody else: no limits, no money, no history.
    assert world.do(world.live().leases("ada", None, 10, None))[0] == []
    spawn(world, "ada", "half", [])
    assert account(world, "ada").account_id != after.account_id
    assert account(world, "ada").credit_u == 0
    assert acts(world, "user.rename") == [("root", "ada", "ada.lovelace", "married")]


def test_a_rename_that_would_lose_something_is_refused(world: World) -> None:
    lease_id = spawn(world, "ada", "quarter", [])
    no = refused(lambda: rename(world, "ada", "eve"))
    assert (no.refusal.reason, no.status) == ("still-leased", 409)
    finish(world, lease_id)
    used_for_an_hour(world, "bob")
    assert refused(lambda: rename(world, "ada", "bob")).refusal.reason == "name-taken"
    assert refused(lambda: rename(world, "ada", "ada")).refusal.reason == "name-taken"
    assert refused(lambda: rename(world, "ada", "eve", version=7)).refusal.reason == (
        "stale-version"
    )
    gone = refused(lambda: rename(world, "nobody", "eve", version=1))
    assert (gone.refusal.reason, gone.status) == ("no-such-account", 404)
    with pytest.raises(ValueError, match="'/'"):
        RenameUser(to="ada/2", version=1, reason="x")
    assert account(world, "ada").version == 1
    assert acts(world, "user.rename") == []


def test_a_place_in_line_goes_along(world: World) -> None:
    running = [spawn(world, f"u{n}", "whole", []) for n in range(2)]
    asked = JoinFor(user="ada", slice="whole")
    first = world.do(world.live().queue.join(asked))
    rename(world, "ada", "eve")
    (mine,) = world.do(world.live().queue.mine("eve"))
    assert (mine.request_id, mine.user) == (first.request_id, "eve")
    hub(world).made = {"eve": None}
    finish(world, running[0])
    assert world.do(world.live().queue.mine("eve"))[0].state == "offered"


# --- the end ------------------------------------------------------------------------------------


def test_a_closed_account_is_never_used_again(world: World) -> None:
    set_policy(world, "user", "ada", {"each": {"slice_types": []}})
    set_policy(world, "user", "ada", {"each": {"slices": 3}})
    give(world, "ada", 5_000_000)
    lease_id = used_for_an_hour(world, "ada")
    before = account(world, "ada")
    after = close(world, "ada")
    assert after.closed_us == world.now
    assert (after.spent_u, after.credit_u) == (before.spent_u, 0)
    assert refused(lambda: account(world, "ada")).refusal.reason == "no-such-account"
    # The next ada begins with nothing, and sees nothing of the former one.
    spawn(world, "ada", "whole", [])
    new = account(world, "ada")
    assert new.account_id != before.account_id
    assert (new.spent_u, new.credit_u, len(new.names)) == (0, 0, 1)
    mine, _ = world.do(world.live().leases("ada", None, 10, None))
    assert lease_id not in {one.lease_id for one in mine}
    assert world.view(lease_id).user == f"ada/{before.account_id}"
    kept = world.do(world.live().people.one(before.account_id))
    assert [one.name for one in kept.names] == ["ada"]
    subject = f"user:{before.account_id}"
    assert world.database.read(lambda s: policies.current(s, subject)) is None
    assert len(world.database.read(lambda s: policies.history(s, subject))) == 2
    back = world.database.read(
        lambda s: s.scalars(sa.select(Entry.amount_u).where(Entry.kind == "expiry")).all()
    )
    assert back == [before.credit_u]
    ((actor, _, _, reason),) = acts(world, "user.close")
    assert (actor, reason) == ("root", "left")


def test_closing_waits_for_what_is_under_way(world: World) -> None:
    lease_id = spawn(world, "ada", "whole", [])
    assert refused(lambda: close(world, "ada")).refusal.reason == "still-leased"
    other = spawn(world, "bob", "whole", [])
    asked = JoinFor(user="cleo", slice="whole")
    waiting = world.do(world.live().queue.join(asked))
    assert refused(lambda: close(world, "cleo")).refusal.reason == "still-waiting"
    world.do(world.live().queue.leave(waiting.request_id, "cleo", "cleo", None))
    assert refused(lambda: close(world, "cleo", version=2)).refusal.reason == "stale-version"
    close(world, "cleo")
    for one in (lease_id, other):
        finish(world, one)
    close(world, "ada")


# --- looking ------------------------------------------------------------------------------------


def test_accounts_are_found_by_any_name_and_page_by_page(world: World) -> None:
    for number in range(5):
        give(world, f"user{number}", 1)
    rename(world, "user3", "50%off")
    close(world, "user4")
    desk = world.live().people
    page = world.do(desk.all("user", "open", None, 0, 2))
    names = [one.name for one in page.accounts]
    while page.next is not None:
        page = world.do(desk.all("user", "open", None, page.next, 2))
        names += [one.name for one in page.accounts]
    assert names == ["user0", "user1", "user2", "50%off"]
    assert [one.name for one in world.do(desk.all("user", "all", "SER3", 0, 9)).accounts] == [
        "50%off"
    ]
    assert [one.name for one in world.do(desk.all(None, "open", "%", 0, 9)).accounts] == ["50%off"]
    closed = world.do(desk.all(None, "closed", None, 0, 9)).accounts
    assert [one.name for one in closed] == [f"user4/{closed[0].account_id}"]
    assert refused(lambda: world.do(desk.one(10_000))).status == 404


# --- groups -------------------------------------------------------------------------------------


def test_a_group_above_a_group_has_its_say(world: World) -> None:
    set_policy(world, "group", "course", {"total": {"slices": 5}})
    set_policy(world, "group", "faculty", {"total": {"slices": 1}})
    assert under(world, "course", "faculty").parent == "faculty"
    spawn(world, "ada", "quarter", ["course"])
    no = refused(lambda: spawn(world, "bob", "quarter", ["course"]))
    assert "group faculty" in no.refusal.message
    assert under(world, "course", None).parent is None
    spawn(world, "bob", "quarter", ["course"])
    assert [(before, after) for _, before, after, _ in acts(world, "group.parent")] == [
        (None, "faculty"), ("faculty", None),
    ]  # fmt: skip


def test_groups_make_no_loop_and_no_tower(world: World) -> None:
    for number in range(1, MAX_DEPTH):
        under(world, f"g{number}", f"g{number - 1}")
    for low, high in (("g0", f"g{MAX_DEPTH - 1}"), ("g3", "g3")):
        no = refused(lambda low=low, high=high: under(world, low, high))
        assert (no.refusal.reason, no.status) == ("group-loop", 422)
    # From above and from below.
    for low, high in (("one-more", f"g{MAX_DEPTH - 1}"), ("g0", "top")):
        no = refused(lambda low=low, high=high: under(world, low, high))
        assert no.refusal.reason == "too-deep"
    assert under(world, "g0", None).parent is None
    body = SetParent(parent="other", version=9, reason="x")
    stale = refused(lambda: world.do(world.live().people.set_parent("g0", body, "root")))
    assert stale.refusal.reason == "stale-version"
    # Put there twice, it is noted once.
    under(world, "g1", "g0")
    assert len(acts(world, "group.parent")) == MAX_DEPTH - 1


# --- the hub ------------------------------------------------------------------------------------


def a_crowd(world: World, number: int = 8, *, made: bool = False) -> list[str]:
    """Users with credit, whom the hub has and the service has seen."""
    names = [f"user{n}" for n in range(number)]
    for n, name in enumerate(names):
        give(world, name, 1_000_000)
        hub(world).made[name] = 1_000 + n if made else None
    done = follow(world)
    assert done is not None and (done.known, done.gone) == (number, 0)
    return names


def names(world: World, state: str = "open") -> list[str]:
    page = world.do(world.live().people.all("user", state, None, 0, 100))  # type: ignore[arg-type]
    return [one.name for one in page.accounts]


def test_a_user_whom_the_hub_has_no_more_is_closed_after_a_day(world: World) -> None:
    a_crowd(world)
    del hub(world).made["user3"]
    assert follow(world).closed == []  # type: ignore[union-attr]
    assert names(world, "missing") == ["user3"]
    world.now += DAY_US - 1
    assert follow(world).closed == []  # type: ignore[union-attr]
    world.now += 1
    assert follow(world).closed == ["user3"]  # type: ignore[union-attr]
    assert len(names(world)) == 7
    ((actor, _, _, reason),) = acts(world, "user.close")
    assert actor == "hub" and "no such user" in (reason or "")
    # Back under the same name: somebody new.
    hub(world).made["user3"] = None
    assert refused(lambda: account(world, "user3")).status == 404


def test_a_user_who_is_back_in_time_was_never_gone(world: World) -> None:
    a_crowd(world)
    del hub(world).made["user3"]
    follow(world)
    world.now += DAY_US - 1
    hub(world).made["user3"] = None
    follow(world)
    assert names(world, "missing") == []
    del hub(world).made["user3"]
    world.now += 1
    assert follow(world).closed == []  # type: ignore[union-attr]


def test_a_hub_that_says_nothing_closes_nobody(world: World) -> None:
    a_crowd(world)
    kept, hub(world).made = hub(world).made, {}
    assert follow(world) is None
    hub(world).made, hub(world).down = {"root": None}, True
    assert follow(world) is None
    world.now += 10 * DAY_US
    assert follow(world) is None
    assert names(world, "missing") == []
    hub(world).made, hub(world).down = kept, False
    assert follow(world).closed == []  # type: ignore[union-attr]


def test_a_hub_that_was_set_up_anew_closes_nobody_without_an_administrator(world: World) -> None:
    a_crowd(world, made=True)
    # Two of eight may go by themselves, three may not; those who log in again are others.
    hub(world).made = {"user0": 77, "root": 78}
    world.now += 1
    for _ in range(3):
        done = follow(world)
        assert done is not None and done.doubted and done.closed == []
        world.now += DAY_US
    assert (done.gone, done.known) == (8, 8)
    desk = world.live().people
    wrong = refused(
        lambda: world.do(desk.close_missing(CloseMissing(count=7, reason="new term"), "root"))
    )
    assert (wrong.refusal.reason, wrong.status) == ("count-differs", 409)
    assert len(names(world)) == 8
    hub(world).down = True
    body = CloseMissing(count=8, reason="new term")
    assert refused(lambda: world.do(desk.close_missing(body, "root"))).status == 503
    hub(world).down = False
    assert len(world.do(desk.close_missing(body, "root")).names) == 8
    assert names(world) == []
    assert {(actor, reason) for actor, _, _, reason in acts(world, "user.close")} == {
        ("root", "new term")
    }


def test_a_quarter_may_go_and_one_more_may_not(world: World) -> None:
    a_crowd(world)
    for name in ("user0", "user1", "user2"):
        del hub(world).made[name]
    follow(world)
    world.now += DAY_US
    done = follow(world)
    assert done is not None and (done.doubted, done.closed) == (True, [])
    hub(world).made["user2"] = None
    done = follow(world)
    assert done is not None and (done.doubted, done.closed) == (False, ["user0", "user1"])


def test_limits_may_be_there_before_the_first_login(world: World) -> None:
    a_crowd(world)
    set_policy(world, "user", "freshman", {"each": {"slices": 1}})
    follow(world)
    world.now += 10 * DAY_US
    follow(world)
    assert "freshman" in names(world)
    assert names(world, "missing") == []


@pytest.mark.parametrize("name", [" ada", "ada ", "a\x07da", "a/da", "ada\u202e"])
def test_nothing_is_kept_for_whom_the_hub_cannot_have(world: World, name: str) -> None:
    live = world.live()
    gift = GiveCredit(whose="user", name=name, amount_u=7, reason="r")
    limit = wire.SetLimit(scope="user", name=name, value=1, version=None, reason="r")
    no_policy = PolicyDocument()
    for change in (
        lambda: live.money.give_credit(gift, "root"),
        lambda: live.set_limit(limit, "root"),
        lambda: live.policies.set("user", name, no_policy, None, "r", "root"),
    ):
        with pytest.raises(Refused, match="no name of the hub") as caught:
            world.do(change())
        assert (caught.value.refusal.reason, caught.value.status) == ("no-such-name", 422)
    assert world.do(live.people.all("user", "all", None, 0, 10)).accounts == []


def test_a_user_with_such_a_name_who_is_there_can_be_changed(world: World) -> None:
    """Whoever has started a server is somebody, whatever a login provider called them."""
    lease_id = spawn(world, " ada", "cpu", [])
    gift = GiveCredit(whose="user", name=" ada", amount_u=7, reason="r")
    assert world.do(world.live().money.give_credit(gift, "root")).name == " ada"
    finish(world, lease_id)


def test_who_still_runs_or_waits_is_closed_in_order(world: World) -> None:
    a_crowd(world)
    lease_id = spawn(world, "user1", "whole", [])
    other = spawn(world, "user5", "whole", [])
    world.do(world.live().queue.join(JoinFor(user="user2", slice="whole")))
    for name in ("user1", "user2"):
        del hub(world).made[name]
    follow(world)
    passes(world, DAY_US, HOUR_US)
    # A place in line ends with its user; a lease has to end first.
    assert follow(world).closed == ["user2"]  # type: ignore[union-attr]
    assert world.do(world.live().queue.all()) == []
    for one in (lease_id, other):
        finish(world, one)
    assert follow(world).closed == ["user1"]  # type: ignore[union-attr]


def test_a_rename_in_the_hub_is_followed_if_it_says_when_it_made_whom(world: World) -> None:
    a_crowd(world, made=True)
    before = account(world, "user3")
    hub(world).made["eve"] = hub(world).made.pop("user3")
    # Not while a server has the old name.
    lease_id = spawn(world, "user3", "quarter", [])
    assert follow(world).renamed == {}  # type: ignore[union-attr]
    assert "user3" in names(world)
    finish(world, lease_id)
    done = follow(world)
    assert done is not None and done.renamed == {"user3": "eve"}
    assert account(world, "eve").account_id == before.account_id
    assert names(world, "missing") == []
    # Known by the same moment, it is nobody new.
    world.now += 2 * DAY_US
    assert follow(world).closed == []  # type: ignore[union-attr]


def test_a_renamed_user_who_has_begun_anew_is_left_to_an_administrator(world: World) -> None:
    a_crowd(world, made=True)
    hub(world).made["eve"] = hub(world).made.pop("user3")
    give(world, "eve", 5)
    follow(world)
    world.now += 2 * DAY_US
    done = follow(world)
    assert done is not None and (done.renamed, done.closed, done.gone) == ({}, [], 1)
    assert names(world, "missing") == ["user3"]


def test_somebody_else_under_the_same_name_gets_nothing(world: World) -> None:
    a_crowd(world, made=True)
    before = account(world, "user3")
    hub(world).made["user3"] = 9_999
    done = follow(world)
    assert done is not None and done.closed == ["user3"]
    spawn(world, "user3", "quarter", [])
    assert account(world, "user3").account_id != before.account_id
    assert follow(world).gone == 0  # type: ignore[union-attr]


def test_a_name_that_goes_from_one_to_another_takes_no_money_along(world: World) -> None:
    a_crowd(world, made=True)
    before = {name: account(world, name).account_id for name in ("user3", "user4")}
    del hub(world).made["user3"]
    hub(world).made["user3"] = hub(world).made.pop("user4")
    done = follow(world)
    assert done is not None
    assert (done.closed, done.renamed) == (["user3"], {"user4": "user3"})
    assert account(world, "user3").account_id == before["user4"]


@settings(max_examples=25, deadline=None)
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(["delete", "make", "remake", "rename", "wait"]),
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        max_size=12,
    )
)
def test_nobody_gets_somebody_elses_account(moves: list[tuple[str, int, int]]) -> None:
    """Three people come and go among twelve who stay, in a hub that says when it made whom.

    Whoever stays keeps one account under every name, nobody ever has that of another, and whoever
    is gone for a day has none.
    """
    with tempfile.TemporaryDirectory() as folder:
        database = Database(sqlite_ledger(Path(folder) / "ledger.sqlite"))
        now, fresh = START, itertools.count(100)
        made = {f"stays{n}": n for n in range(12)}
        owners: dict[int, int] = {}

        def use(name: str) -> None:
            used = database.write(lambda s: policies.account_of(s, "user", name, now))
            # An account has one owner, and an owner one account.
            assert owners.setdefault(used, made[name]) == made[name]
            assert list(owners.values()).count(made[name]) == 1

        def look() -> people.Followed:
            users = [HubUser(name, (), {}, at) for name, at in made.items()]
            return database.write(lambda s: people.follow(s, users, DAY_US, now=now))

        for name in made:
            use(name)
        look()
        for move, one, other in moves:
            name, new = f"p{one}", f"p{other}"
            now += MINUTE_US
            match move:
                case "delete":
                    made.pop(name, None)
                case "make":
                    made.setdefault(name, next(fresh))
                case "remake" if name in made:
                    made[name] = next(fresh)
                case "rename" if name in made and new not in made:
                    made[new] = made.pop(name)
                case "wait":
                    now += DAY_US
            assert not look().doubted
            for present in [one for one in made if one.startswith("p")]:
                use(present)
            look()
        now += 2 * DAY_US
        look()
        now += DAY_US
        look()
        rows = database.read(
            lambda s: s.scalars(
                sa.select(Account.label).where(
                    Account.closed_us.is_(None), Account.kind == "user"
                )
            ).all()
        )  # fmt: skip
        assert set(rows) <= set(made) and {f"stays{n}" for n in range(12)} <= set(rows)
        assert database.read(verify) == []
        database.close()


# --- lists --------------------------------------------------------------------------------------


def imported(world: World, *rows: dict[str, Any], **more: Any) -> Imported:
    body = ImportPeople.model_validate({"rows": rows, "reason": "winter term"} | more)
    return world.do(world.live().people.import_(body, "root"))


def verbs(done: Imported) -> list[tuple[str, str, str]]:
    return [(change.user, change.policy, change.credit) for change in done.changes]


ROWS: tuple[dict[str, Any], ...] = (
    {"user": "ada", "each": {"slices": 1, "gpu_hours": [{"at_most": "20", "per": "week"}]},
     "credit_u": 10_000_000},
    {"user": "bob", "each": {"slices": None, "gpu_hours": []}},
)  # fmt: skip


def test_a_list_is_shown_done_and_then_changes_nothing(world: World) -> None:
    set_policy(world, "user", "bob", {"each": {"slices": 5, "slice_types": ["cpu"]}})
    want = [("ada", "created", "given"), ("bob", "changed", "none")]
    seen = imported(world, *ROWS, credit_name="winter", dry_run=True)
    assert (verbs(seen), seen.done) == (want, False)
    assert acts(world, "credit.give") == []
    assert refused(lambda: account(world, "ada")).status == 404
    done = imported(world, *ROWS, credit_name="winter")
    assert (verbs(done), done.done) == (want, True)
    assert account(world, "ada").credit_u == 10_000_000
    # What the list has no column for stays.
    bob = world.do(world.live().policies.one("user", "bob"))
    assert (bob.document.each.slices, bob.document.each.slice_types) == (None, ["cpu"])
    rows = world.database.read(lambda s: s.scalar(sa.select(sa.func.count()).select_from(Audit)))
    for _ in range(2):
        again = imported(world, *ROWS, credit_name="winter")
        assert verbs(again) == [
            ("ada", "unchanged", "given-before"), ("bob", "unchanged", "none"),
        ]  # fmt: skip
    assert account(world, "ada").credit_u == 10_000_000
    assert rows == world.database.read(
        lambda s: s.scalar(sa.select(sa.func.count()).select_from(Audit))
    )
    # The next term is another name; a policy without any word left is none.
    nothing = {"user": "ada", "each": {"slices": None, "gpu_hours": []}, "credit_u": 1}
    assert verbs(imported(world, nothing, credit_name="summer")) == [("ada", "removed", "given")]
    assert account(world, "ada").credit_u == 10_000_001


def test_a_list_is_done_as_a_whole_or_not_at_all(world: World) -> None:
    imported(world, {"user": "bob", "credit_u": 7}, credit_name="winter")
    before = world.database.read(lambda s: len(s.scalars(sa.select(Audit)).all()))
    other = ({"user": "ada", "each": {"slices": 1}}, {"user": "bob", "credit_u": 8})
    no = refused(lambda: imported(world, *other, credit_name="winter"))
    assert (no.refusal.reason, no.status) == ("credit-differs", 409)
    for rows, reason in (
        (({"user": "ada"}, {"user": "ada"}), "named-twice"),
        (({"user": "ada", "credit_u": 8},), "credit-name-missing"),
    ):
        assert refused(lambda rows=rows: imported(world, *rows)).refusal.reason == reason
    assert refused(lambda: account(world, "ada")).status == 404
    assert before == world.database.read(lambda s: len(s.scalars(sa.select(Audit)).all()))


def test_a_list_says_what_the_hub_lacks(world: World) -> None:
    hub(world).made, hub(world).groups = {"ada": None}, {"ada": ("course",)}
    rows = [{"user": name, "groups": ["course", "lab"]} for name in ("ada", "bob")]
    done = imported(world, *rows, dry_run=True)
    assert [(one.in_hub, one.not_in_groups) for one in done.changes] == [
        (True, ["lab"]), (False, ["course", "lab"]),
    ]  # fmt: skip
    hub(world).down = True
    world.now += MINUTE_US
    (one, _) = imported(world, *rows, dry_run=True).changes
    assert (one.in_hub, one.not_in_groups) == (None, None)
    assert world.database.read(
        lambda s: s.scalars(sa.select(Account.id).where(Account.kind == "user")).all()
    ) == []  # fmt: skip


def test_names_of_the_platform_are_no_users(world: World) -> None:
    """The platform's own accounts have another source: a user may be called like one."""
    used_for_an_hour(world, "ada")
    give(world, "revenue", 1)
    close(world, "revenue")
    assert world.database.read(lambda s: accounts.find(s, accounts.OURS, "revenue")) is not None
