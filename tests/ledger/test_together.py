"""Parts that were made apart and meet on one ledger: the queue, reservations, servers without a
lease, backups, a service that ends, and one that was replaced."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from fakenode import gpu
from gpuslice import wire
from gpuslice.broker import meter
from gpuslice.broker.core import HubUser
from gpuslice.broker.housekeeping import Housekeeping
from gpuslice.broker.moneyviews import GiveCredit, GrantMore
from gpuslice.broker.queuedesk import JoinFor, QueueDesk
from gpuslice.broker.reservationviews import AddReservation
from gpuslice.broker.strangers import AdoptServer
from gpuslice.cli.backup import backup
from gpuslice.cli.restore import Wish, restore
from gpuslice.ledger import closing
from gpuslice.ledger.database import Database
from gpuslice.ledger.digest import Signer
from gpuslice.ledger.idempotency import Claim, answer, claim
from gpuslice.ledger.tables import Base
from gpuslice.nodeclient import NodeUnavailable
from gpuslice.units import HOUR_US, MINUTE_US, from_datetime
from ledgerworld import World
from quotaworld import passes, refused, set_policy, spawn, stop_all

DAY_US = 24 * HOUR_US
ZONE = ZoneInfo("Europe/Berlin")
#: A Tuesday.
NINE = from_datetime(datetime(2026, 12, 1, 9, tzinfo=ZONE))
TEN = NINE + HOUR_US
STRANGER = "5" * 32


class FakeHub:
    """A hub with these users, and what it was asked to start and to stop."""

    def __init__(self) -> None:
        self.names: set[str] = {"ada", "bob", "cleo"}
        self.started: list[str] = []
        self.stopped: list[str] = []

    async def stop_server(self, user: str, server: str) -> None:
        self.stopped.append(user)

    async def start_server(self, user: str, server: str, options: dict[str, str]) -> None:
        self.started.append(user)

    async def user(self, name: str) -> HubUser | None:
        return HubUser(name, (), {}) if name in self.names else None

    async def users(self) -> list[HubUser]:
        return [HubUser(name, (), {}) for name in sorted(self.names)]


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url, devices=[gpu("GPU-a", 0)], hub=FakeHub())
    made.now = NINE
    made.reconcile()
    yield made
    assert made.problems() == []
    made.close()


def join(world: World, user: str, slice_name: str, **more: Any) -> wire.RequestView:
    return world.do(world.live().queue.join(JoinFor(user=user, slice=slice_name, **more)))


def state_of(world: World, user: str) -> str:
    return world.do(world.live().queue.mine(user))[0].state


def reserve(world: World, count: int) -> None:
    """So many quarters for a course on Tuesdays from ten to twelve, others are told 15 minutes
    before."""
    body = AddReservation.model_validate(
        {
            "group": "course", "slice": "quarter", "count": count, "timezone": "Europe/Berlin",
            "first_day": "2026-12-01", "last_day": "2026-12-31", "weekdays": ["tue"],
            "from_time": "10:00", "til_time": "12:00", "notice_us": 15 * MINUTE_US,
            "reason": "teaching",
        }
    )  # fmt: skip
    world.do(world.live().reservations.add(body, "root"))


def stranger(world: World) -> None:
    """A server of ada's on a quarter, which the ledger does not know."""
    quarter = next(one for one in world.do(world.live().offers(None)) if one.slice == "quarter")
    world.node.slices[STRANGER] = wire.PrepareSlice(
        lease_id=STRANGER, user="ada", server="", slice_type="quarter",
        kind=wire.SliceKind.SHARED, device_uuid="GPU-a", share_milli=250,
        memory_bytes=quarter.memory_bytes, enforcement=wire.Enforcement.ADVISORY,
        cpu_milli=1000, ram_bytes=1 << 30,
    )  # fmt: skip
    world.node.run(world.node.create(STRANGER), world.now)


# --- a service that ends, and those who wait ----------------------------------------------------


@pytest.mark.parametrize("by_itself", [False, True])
def test_what_a_drain_frees_is_offered_to_nobody(world: World, by_itself: bool) -> None:
    spawn(world, "ada", "whole", [])
    join(world, "bob", "whole", auto_start=by_itself)
    world.do(world.live().drain("an update", "root"))
    for _ in range(4):
        world.now += 10_000_000
        world.reconcile()
    assert state_of(world, "bob") == "waiting"
    assert world.do(world.live().drain("an update", "root")) == 0
    assert isinstance(world.hub, FakeHub)
    assert world.hub.started == []
    offers = world.do(world.live().offers("cleo"))
    assert {one.free for one in offers} == {0}
    assert all("an update" in str(one.unavailable) for one in offers)
    # The next service gives bob the turn.
    world.restart()
    world.now += 10_000_000
    world.reconcile()
    assert state_of(world, "bob") == ("starting" if by_itself else "offered")


def test_an_offer_that_a_drain_ends_is_told(world: World) -> None:
    join(world, "bob", "whole")
    world.reconcile()
    assert state_of(world, "bob") == "offered"
    world.do(world.live().drain("an update", "root"))
    for _ in range(3):
        world.now += 10_000_000
        world.reconcile()
    assert state_of(world, "bob") == "expired"
    assert world.do(world.live().drain("an update", "root")) == 0
    said = [one.message for one in world.do(world.live().notices("bob", 0))]
    assert "an update" in said[-1]


# --- the line, and reservations -----------------------------------------------------------------


def test_a_short_session_has_its_turn_before_a_reservation(world: World) -> None:
    """As at a start: whose policy ends it in time may have what is kept for later."""
    first = spawn(world, "ada", "whole", [])
    reserve(world, 4)
    set_policy(world, "user", "bob", {"each": {"session_hours": "0.25"}})
    for user in ("cleo", "bob"):
        join(world, user, "quarter")
        world.now += 1
    world.stop(first)
    world.node.finish(world.node.servers[first])
    passes(world, 20_000_000, 5_000_000)
    assert (state_of(world, "bob"), state_of(world, "cleo")) == ("offered", "waiting")
    assert refused(lambda: world.grant("cleo", "quarter")).refusal.reason == "reserved"


# --- servers without a lease, and reservations --------------------------------------------------


@pytest.mark.parametrize("of_the_class", [False, True])
def test_an_adopted_server_of_the_class_is_one_of_its_slices(
    world: World, of_the_class: bool
) -> None:
    reserve(world, 4)
    stranger(world)
    groups = ["course"] if of_the_class else []
    body = AdoptServer(groups=groups, reason="it is ada's")
    world.do(world.live().strangers.adopt(STRANGER, body, "root"))
    world.now += 1
    while world.now < TEN + 5 * MINUTE_US:
        passes(world, MINUTE_US, 30_000_000)
    # All four are the class's: hers is one of them, anybody else's is in its way.
    assert (world.view(STRANGER).stop_requested_us is None) == of_the_class
    kinds = [one.kind for one in world.do(world.live().notices("ada", 0))]
    assert ("reservation" in kinds) != of_the_class
    for number in range(4 - of_the_class):
        spawn(world, f"student{number}", "quarter", ["course"])
    assert refused(lambda: world.grant("late", "quarter")).refusal.reason == "gpu-full"
    stop_all(world)


def test_the_end_of_a_server_without_a_lease_is_decided_once(world: World) -> None:
    """Also while the node does not do it: the comparisons ask again until it is over."""
    stranger(world)
    real = world.node.stop

    async def silent(_lease_id: str, _grace_s: float = 10.0) -> None:
        raise NodeUnavailable("no-answer", "the node does not answer")

    world.node.stop = silent  # type: ignore[method-assign]
    assert world.do(world.live().strangers.end(STRANGER, "nobody's", "root")).ending
    assert world.live().errors.counts()["node"] == 1
    assert world.node.servers[STRANGER].runs
    world.node.stop = real  # type: ignore[method-assign]
    for _ in range(3):
        world.now += 10_000_000
        world.reconcile()
    assert STRANGER not in world.node.servers
    assert world.grant("bob", "whole").slice == "whole"


# --- backups ------------------------------------------------------------------------------------

Rows = dict[str, list[tuple[Any, ...]]]


def rows(database: Database) -> Rows:
    """Every row of every table but the meter's."""
    return database.read(
        lambda s: {
            name: sorted(map(tuple, s.execute(sa.select(table))), key=repr)
            for name, table in Base.metadata.tables.items()
            if name != "meter"
        }
    )


def rows_at(url: str) -> Rows:
    database = Database(url)
    try:
        return rows(database)
    finally:
        database.close()


def test_a_backup_has_every_table(world: World, tmp_path: Path) -> None:
    """Those of the queue, of reservations, policies, credit, keys and digests, too; and what was
    signed before is right after it."""
    set_policy(world, "user", "ada", {"each": {"money": [{"at_most": "9", "per": "day"}]}})
    reserve(world, 2)
    gift = GiveCredit(whose="user", name="ada", amount_u=700_000, reason="a prize")
    world.do(world.live().money.give_credit(gift, "root"))
    lease_id = spawn(world, "ada", "quarter", [])
    join(world, "bob", "whole")
    passes(world, HOUR_US, 30 * MINUTE_US)
    more = GrantMore(money_u=5, until_us=world.now + 2 * DAY_US, reason="a thesis")
    world.do(world.live().money.grant_more(lease_id, more, "root"))
    key = Claim("operator:operator", "k", "0" * 64)

    def sent_before(session: sa.orm.Session) -> None:
        claim(session, key, world.now)
        answer(session, key, 201, "{}")

    world.database.write(sent_before)
    signer = Signer(secrets.token_hex(32))
    keeper = Housekeeping(world.live().core, signer)
    passes(world, DAY_US, 12 * HOUR_US)
    world.do(keeper.round())
    world.kill()
    before = rows_at(world.url)
    empty = {name for name, rows in before.items() if not rows}
    assert empty == set()
    file = tmp_path / "saved"
    backup(world.url, file, clock=world.clock)
    wish = Wish(
        url=world.url, source=file, replace=True, actor="root", reason="a test", now=world.now
    )
    restore(wish)
    after = rows_at(world.url)
    restored = [row for row in after["audit"] if row not in before["audit"]]
    assert len(restored) == 1 and "ledger.restore" in restored[0]
    after["audit"].remove(restored[0])
    assert after == before
    world.restart()
    assert list(world.database.read(lambda s: list(closing.check(s, [signer.public])))) == []
    assert state_of(world, "bob") == "waiting"
    stop_all(world)


# --- one that was replaced ----------------------------------------------------------------------


def test_a_service_that_was_replaced_keeps_no_house(world: World) -> None:
    """It closes no day, takes no credit back, closes nobody's account, and offers nothing."""
    gift = GiveCredit(
        whose="user", name="ada", amount_u=7, expires_us=world.now + 1, reason="a prize"
    )
    world.do(world.live().money.give_credit(gift, "root"))
    world.do(world.live().people.follow())
    join(world, "bob", "whole")
    assert isinstance(world.hub, FakeHub)
    world.hub.names.remove("ada")
    world.now += 3 * DAY_US
    world.database.write(lambda s: meter.void(s, above=0))
    keeper = Housekeeping(world.live().core, Signer(secrets.token_hex(32)))
    before = rows(world.database)
    for job in (keeper.round, world.live().people.follow, world.live().queue.serve_line):
        with pytest.raises(meter.EpochLost):
            world.do(job())
    assert rows(world.database) == before
    assert world.hub.started == []
    # The one in its place does all of it.
    world.restart()
    world.do(Housekeeping(world.live().core, Signer(secrets.token_hex(32))).round())
    world.do(world.live().people.follow())
    world.reconcile()
    assert state_of(world, "bob") == "offered"
    after = rows(world.database)
    assert before["digest"] == [] != after["digest"]
    assert len(after["entry"]) == len(before["entry"]) + 1
    missing = world.do(world.live().people.named("user", "ada")).missing_since_us
    assert missing is not None


def asks_hub_to_stop(world: World, lease_id: str) -> Coroutine[Any, Any, None]:
    """A service's call to the hub for a stop, before the first of its steps."""
    broker = world.live()
    view = world.stop(lease_id)
    assert world.hub is not None
    return broker._ask_hub(world.hub, view)


def test_the_hub_is_asked_to_end_only_the_server_that_was_meant(world: World) -> None:
    """It knows servers by name: a service that slept must not end the user's next one."""
    assert isinstance(world.hub, FakeHub)
    world.do(asks_hub_to_stop(world, spawn(world, "ada", "quarter", [])))
    assert world.hub.stopped == ["ada"]
    late = asks_hub_to_stop(world, spawn(world, "bob", "quarter", []))
    stop_all(world)
    spawn(world, "bob", "quarter", [])
    world.do(late)
    assert world.hub.stopped == ["ada"]


def serve_line_and_start(world: World) -> None:
    """A round of the line, with what it asked the hub for."""

    async def both() -> None:
        with suppress(meter.EpochLost):
            await world.live().queue.serve_line()
        await asyncio.gather(*world.live().queue.under_way)

    world.do(both())


def test_a_service_that_was_replaced_asks_the_hub_for_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(world.hub, FakeHub)
    late = asks_hub_to_stop(world, spawn(world, "ada", "quarter", []))
    join(world, "bob", "quarter", auto_start=True)
    real, slept = QueueDesk._start, []

    async def start(desk: QueueDesk, *arguments: Any) -> None:
        world.database.write(lambda s: meter.void(s, above=0))
        slept.append(desk)
        await real(desk, *arguments)

    monkeypatch.setattr(QueueDesk, "_start", start)
    serve_line_and_start(world)
    world.do(late)
    assert (len(slept), world.hub.started, world.hub.stopped) == (1, [], [])


def test_what_was_left_meanwhile_is_not_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(world.hub, FakeHub)
    asked = join(world, "bob", "whole", auto_start=True)
    real = QueueDesk._start

    async def start(desk: QueueDesk, *arguments: Any) -> None:
        await desk.leave(asked.request_id, "bob", "bob", None)
        await real(desk, *arguments)

    monkeypatch.setattr(QueueDesk, "_start", start)
    serve_line_and_start(world)
    assert world.hub.started == []
