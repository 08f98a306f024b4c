"""A heartbeat of many leases: a few statements, and the same outcome as one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from fakenode import gpu
from gpuslice.broker.verify import cli_verify
from gpuslice.ledger import accounts, credit
from gpuslice.ledger.tables import CreditGrant, Entry, Hold, Lease, NoticeRow, Segment
from gpuslice.units import HOUR_US, SECOND_US
from ledgerworld import START, World
from quotaworld import finish, leases, set_policy, spawn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import books

MANY = 80


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    assert made.problems() == []
    made.close()


@pytest.fixture
def full(database_url: str) -> Iterator[World]:
    """Books in which many leases run."""
    books.make(database_url, books.Size(devices=20, users=MANY, entries=200, live=MANY))
    made = World(database_url, devices=[gpu(books.device(number), number) for number in range(20)])
    for lease in leases(made):
        if lease.state == "running":
            assert lease.started_us is not None
            made.node.run(made.node.create(lease.id), lease.started_us)
    made.reconcile()
    yield made
    assert made.problems() == []
    made.close()


def statements(world: World, work: Callable[[], object]) -> int:
    """How many statements are sent; one that is run for many rows counts once."""
    sent = 0

    def count(*_: object) -> None:
        nonlocal sent
        sent += 1

    event.listen(world.database.engine, "before_cursor_execute", count)
    try:
        work()
    finally:
        event.remove(world.database.engine, "before_cursor_execute", count)
    return sent


def give(world: World, source: str, name: str, amount_u: int) -> None:
    def work(session: sa.orm.Session) -> None:
        account = accounts.find_or_open(session, source, name, world.now)
        credit.give(session, account, amount_u, key=name, actor="t", reason="r", now=world.now)

    world.database.write(work)


def paid(world: World) -> list[tuple[str, int | None, int]]:
    """Who paid, out of which credit, how much, in the order of the entries."""
    return world.database.read(
        lambda s: [
            tuple(row)
            for row in s.execute(
                sa.select(Lease.user_name, Entry.grant_id, Entry.amount_u)
                .join(Segment, Segment.id == Entry.segment_id)
                .join(Lease, Lease.id == Segment.lease_id)
                .order_by(Entry.id)
            )
        ]
    )


def test_the_books_are_in_order(database_url: str) -> None:
    books.make(database_url, books.Size(devices=3, users=120, entries=1_000, live=7))
    assert cli_verify(database_url) == []
    with pytest.raises(ValueError, match="not empty"):
        books.make(database_url, books.Size())


def test_a_beat_of_many_leases_has_fewer_statements_than_leases(full: World) -> None:
    before = {lease.id: lease.covered_us for lease in leases(full) if lease.state == "running"}
    assert len(before) == MANY
    full.now += 30 * SECOND_US
    assert statements(full, full.reconcile) < MANY
    after = {lease.id: lease.covered_us for lease in leases(full) if lease.state == "running"}
    assert after == dict.fromkeys(before, START + 30 * SECOND_US)


def test_also_when_each_of_them_is_billed(full: World) -> None:
    full.now += HOUR_US
    assert statements(full, full.reconcile) < MANY
    assert {one.billed_us for one in leases(full) if one.state == "running"} == {
        full.now // HOUR_US * HOUR_US
    }


def test_also_when_each_of_them_is_told_something(full: World) -> None:
    set_policy(full, "group", "group0", {"total": {"money": [{"at_most": 210, "per": "life"}]}})
    full.reconcile()
    told = full.database.read(lambda s: s.scalar(sa.select(sa.func.count(NoticeRow.id)))) or 0
    assert told >= MANY  # of the part of the limit that is used, or of the end that is near
    full.now += SECOND_US
    assert statements(full, full.reconcile) < MANY
    # The same is told once.
    kinds = full.database.read(lambda s: s.scalars(sa.select(NoticeRow.idem_key)).all())
    assert len(kinds) == len(set(kinds))


def test_a_groups_credit_pays_the_leases_of_one_beat_in_their_order(world: World) -> None:
    set_policy(world, "group", "students", {"total": {"money": [{"at_most": 100, "per": "month"}]}})
    give(world, accounts.HUB_GROUP, "students", 1_000_000)
    for user in ("ada", "bob"):
        spawn(world, user, "quarter", ["students"])
    world.now += 2 * HOUR_US  # from 14:13:20: two full hours have passed
    world.reconcile()
    grant = world.database.read(lambda s: s.scalars(sa.select(CreditGrant)).one())
    first = 875_001 * 2_800 // 3_600  # until 15:00
    rest = 1_000_000 - first
    whole = 875_001 * 6_400 // 3_600 - first
    assert paid(world) == [
        ("ada", grant.id, first),
        ("ada", grant.id, rest),
        ("ada", None, whole - rest),
        ("bob", None, first),
        ("bob", None, whole),
    ]
    assert grant.used_u == grant.amount_u


def test_one_that_has_ended_pays_in_its_turn(world: World) -> None:
    """Between two that run: what is left of the credit is its, not that of the one after it."""
    set_policy(world, "group", "students", {"total": {"money": [{"at_most": 100, "per": "month"}]}})
    give(world, accounts.HUB_GROUP, "students", 1_000_000)
    ids = [spawn(world, user, "quarter", ["students"]) for user in ("ada", "bob", "eve")]
    world.now += 3_000 * SECOND_US  # one full hour has passed
    world.node.finish(world.node.servers[ids[1]])
    world.reconcile()
    first = 875_001 * 2_800 // 3_600
    second = 875_001 * 3_000 // 3_600 - first
    rest = 1_000_000 - first
    assert [row for row in paid(world) if row[0] == "ada"] == [("ada", 1, first)]
    assert [row for row in paid(world) if row[0] == "bob"] == [
        ("bob", 1, rest), ("bob", None, first - rest), ("bob", None, second)
    ]  # fmt: skip
    assert [row for row in paid(world) if row[0] == "eve"] == [("eve", None, first)]


def test_holds_follow_what_is_not_billed_yet(world: World) -> None:
    """Each on its own, also where several leases count for the same account."""
    set_policy(world, "group", "students", {"total": {"money": [{"at_most": 100, "per": "month"}]}})
    mine = [spawn(world, "ada", "quarter", ["students"]), spawn(world, "bob", "half", ["students"])]
    for ahead_s in (630, 660, 690):  # what is not billed yet, and ten minutes
        world.now += 30 * SECOND_US
        world.reconcile()
        assert world.problems() == []
        rows = world.database.read(
            lambda s: s.execute(sa.select(Hold.lease_id, Hold.amount_u)).all()
        )
        assert {tuple(row) for row in rows} == {
            (mine[0], -(-875_001 * ahead_s // 3_600)), (mine[1], -(-1_750_000 * ahead_s // 3_600))
        }  # fmt: skip
    for lease_id in mine:
        finish(world, lease_id)


def test_a_users_entries_are_the_newest_of_both_sides(world: World) -> None:
    give(world, accounts.HUB_USER, "ada", 300_000)  # which ada gets, and then pays with
    lease_id = spawn(world, "ada", "quarter", [])
    world.now += 3 * HOUR_US
    world.reconcile()
    finish(world, lease_id)
    every, _ = world.do(world.live().money.entries(None, None, None, 100))
    mine = [one for one in every if "user:ada" in (one.debit, one.credit)]
    assert len({one.kind for one in mine}) == 2 and len(mine) > 4
    for limit in (1, 2, len(mine)):
        page, following = world.do(world.live().money.entries("user", "ada", None, limit))
        assert page == mine[:limit]
        assert following == (page[-1].entry_id if limit < len(mine) else None)
    page, _ = world.do(world.live().money.entries("user", "ada", mine[1].entry_id, 100))
    assert page == mine[2:]
