"""Days that are closed: every entry is in one digest, and what is changed afterwards is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from gpuslice.broker.broker import Broker
from gpuslice.broker.housekeeping import Housekeeping
from gpuslice.broker.moneyviews import GiveCredit
from gpuslice.ledger import closing, triggers
from gpuslice.ledger.database import LedgerError
from gpuslice.ledger.digest import Signer
from gpuslice.ledger.tables import Digest, Entry
from gpuslice.units import HOUR_US, MINUTE_US
from ledgerworld import START, World
from quotaworld import passes, spawn

SIGNER, OTHER = Signer("21" * 32), Signer("22" * 32)
DAY_US = 24 * HOUR_US
#: The first midnight of these worlds, and the day that ends with it.
MIDNIGHT = START - START % DAY_US + DAY_US
DAYS = ["2026-09-21", "2026-09-22", "2026-09-23"]


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    made.close()


def tidy(world: World, signer: Signer = SIGNER) -> None:
    """A round of housekeeping, as the broker's loop does it."""
    world.do(Housekeeping(world.live().core, signer).round())


def digests(world: World) -> list[Digest]:
    return world.database.read(lambda s: list(s.scalars(sa.select(Digest).order_by(Digest.number))))


def found(world: World, *signers: Signer) -> list[str]:
    keys = [signer.public for signer in signers or (SIGNER,)]
    return world.database.read(lambda s: list(closing.check(s, keys)))


def three_days(world: World) -> None:
    """A lease over three days, with a round of housekeeping in each."""
    spawn(world, "ada", "quarter", [])
    for midnight in range(3):
        passes(world, MIDNIGHT + midnight * DAY_US + HOUR_US + 1 - world.now, 6 * HOUR_US)
        tidy(world)


def behind_their_back(world: World, *statements: str) -> None:
    """SQL past the triggers, as somebody with the database's password may write it."""
    with world.database.engine.begin() as connection:
        dialect = connection.dialect.name
        for table in ("entry", "segment", "digest"):
            for statement in triggers.drop(dialect, [table], first=False):
                connection.exec_driver_sql(statement)
        if dialect == "sqlite":
            connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        for statement in statements:
            assert connection.execute(sa.text(statement)).rowcount == 1


# --- closing ------------------------------------------------------------------------------------


def test_a_day_is_closed_some_minutes_after_its_end_and_once(world: World) -> None:
    spawn(world, "ada", "quarter", [])
    passes(world, MIDNIGHT - world.now, HOUR_US)
    tidy(world)
    # The first digest of a ledger is made at once, whatever has been before it.
    assert [row.day for row in digests(world)] == ["2026-09-20"]
    assert digests(world)[0].entries == 0
    passes(world, 9 * MINUTE_US, 3 * MINUTE_US)
    tidy(world)
    assert len(digests(world)) == 1
    passes(world, MINUTE_US)
    tidy(world)
    tidy(world)
    first, second = digests(world)
    assert (second.day, second.number, second.previous) == ("2026-09-21", 2, first.sha256)
    assert second.entries > 5
    assert found(world) == []


def test_every_entry_of_a_day_that_is_over_is_in_one_digest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "_CHUNK", 4)
    three_days(world)
    rows = digests(world)
    assert [row.day for row in rows] == DAYS
    ids = world.database.read(lambda s: list(s.execute(sa.select(Entry.id, Entry.created_us))))
    at = 0
    for number, row in enumerate(rows):
        mine = [i for i, _ in ids if at < i <= (row.last_entry or 0)]
        assert (mine[0], mine[-1], len(mine)) == (row.first_entry, row.last_entry, row.entries)
        end = MIDNIGHT + number * DAY_US
        assert all(end - DAY_US <= us < end for i, us in ids if i in mine)
        at = mine[-1]
    # What was written since is in the next one.
    assert ids[-1][0] > at
    assert found(world) == []
    # In parts of another size it is the same.
    monkeypatch.setattr(closing, "_CHUNK", 7)
    assert found(world) == []


def test_days_without_the_service_have_no_digest_of_their_own(world: World) -> None:
    spawn(world, "ada", "quarter", [])
    passes(world, MIDNIGHT + 2 * HOUR_US - world.now, HOUR_US)
    world.kill()
    world.now = MIDNIGHT + 5 * DAY_US + HOUR_US
    world.restart()
    tidy(world)
    # The days on which something was written, and the newest.
    assert [row.day for row in digests(world)] == ["2026-09-21", "2026-09-22", "2026-09-26"]
    assert [bool(row.entries) for row in digests(world)] == [True, True, False]
    world.reconcile()
    assert found(world) == []


def test_a_clock_that_jumps_leaves_no_entry_out_and_none_twice(world: World) -> None:
    spawn(world, "ada", "quarter", [])
    passes(world, 2 * HOUR_US, HOUR_US)
    right = world.now

    def give(amount: int) -> None:
        body = GiveCredit(whose="user", name="ada", amount_u=amount, reason="x")
        world.do(world.live().money.give_credit(body, "root"))

    for jump in (0, 40 * DAY_US, -3 * DAY_US, 0, 2 * DAY_US):
        world.now = right + jump
        give(1 + abs(jump))
        tidy(world)
        give(2 + abs(jump))
    world.now = right + 3 * DAY_US
    tidy(world)
    rows = digests(world)
    covered = sum(row.entries for row in rows)
    ids = world.database.read(lambda s: list(s.scalars(sa.select(Entry.id).order_by(Entry.id))))
    assert covered == len(ids)
    assert rows[-1].last_entry == ids[-1]
    assert found(world) == []


def test_another_service_that_was_faster_is_no_error(world: World) -> None:
    three_days(world)
    made = digests(world)[-1]
    again = Digest(
        number=made.number, day="2026-09-29", first_entry=None, last_entry=None, entries=0,
        sha256="x", previous="y", key_id="z", signature="", created_us=1,
    )  # fmt: skip
    assert not world.database.write(lambda s: closing.add(s, again))
    assert found(world) == []


def test_digests_come_in_pages(world: World) -> None:
    three_days(world)
    desk = world.live().money
    newest, following = world.do(desk.digests(None, 2))
    rest, end = world.do(desk.digests(following, 2))
    assert [row.day for row in [*newest, *rest]] == DAYS[::-1]
    assert end is None


def test_housekeeping_takes_back_expired_credit(world: World) -> None:
    body = GiveCredit(
        whose="user", name="ada", amount_u=5, expires_us=world.now + HOUR_US, reason="x"
    )
    world.do(world.live().money.give_credit(body, "root"))
    world.now += 50 * HOUR_US
    tidy(world)
    rows, _ = world.do(world.live().money.entries("user", "ada", None, 9))
    assert [(row.kind, row.amount_u) for row in rows] == [("expiry", 5), ("credit", 5)]
    assert world.problems() == []


@pytest.mark.parametrize(
    ("error", "source"), [(LedgerError("away"), "ledger"), (ZeroDivisionError(), "internal")]
)
def test_housekeeping_that_fails_is_counted_and_the_rest_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, source: str
) -> None:
    async def run(broker: Broker) -> None:
        failed = asyncio.Event()

        async def fail() -> None:
            failed.set()
            raise error

        monkeypatch.setattr(broker.housekeeping, "round", fail)
        task = asyncio.create_task(broker.run())
        await failed.wait()
        assert broker.errors.counts()[source] == 1
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])

    world.do(run(world.live()))


# --- what was changed afterwards ----------------------------------------------------------------

_SOME = "(SELECT first_entry + 2 FROM digest WHERE number = 2)"
_PAID = f"(SELECT segment_id FROM entry WHERE id = {_SOME})"
_NEW = """INSERT INTO entry (id, idem_key, kind, debit_id, credit_id, amount_u, leg, actor, memo,
          created_us) SELECT {id}, 'new', kind, debit_id, credit_id, 1, 0, actor, memo,
          created_us FROM entry WHERE id = {some}"""


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE entry SET amount_u = amount_u + 1 WHERE id = {_SOME}",
        f"UPDATE entry SET memo = 'x' WHERE id = {_SOME}",
        f"UPDATE entry SET created_us = created_us + 1 WHERE id = {_SOME}",
        f"UPDATE entry SET idem_key = 'other' WHERE id = {_SOME}",
        f"UPDATE segment SET til_us = til_us - 1 WHERE id = {_PAID}",
        f"UPDATE segment SET created_us = created_us + 1 WHERE id = {_PAID}",
        f"DELETE FROM entry WHERE id = {_SOME}",
        "DELETE FROM entry WHERE id = (SELECT last_entry FROM digest WHERE number = 2)",
        "DELETE FROM entry WHERE id = (SELECT first_entry FROM digest WHERE number = 2)",
    ],
)
def test_a_change_behind_the_triggers_back_is_named_with_its_day(
    world: World, statement: str
) -> None:
    three_days(world)
    behind_their_back(world, statement)
    (problem,) = found(world)
    assert problem.startswith("digest of 2026-09-22: ")
    if statement.startswith("DELETE"):
        count = digests(world)[1].entries
        assert f"{count} entries were signed, there are {count - 1}" in problem


def test_an_entry_put_among_those_of_a_closed_day_is_named(world: World) -> None:
    three_days(world)
    behind_their_back(
        world, f"DELETE FROM entry WHERE id = {_SOME}", _NEW.format(id=_SOME, some=f"{_SOME} - 1")
    )
    assert found(world) == [
        "digest of 2026-09-22: its entries or their segments are not those that were signed"
    ]
    # And before the first of all.
    behind_their_back_again = _NEW.format(id=-5, some=f"{_SOME} - 1").replace("'new'", "'newer'")
    with world.database.engine.begin() as connection:
        connection.execute(sa.text(behind_their_back_again))
    assert [line.partition(":")[0] for line in found(world)] == [
        "digest of 2026-09-21", "digest of 2026-09-22",
    ]  # fmt: skip


def says(world: World, *parts: str) -> None:
    lines = found(world)
    assert len(lines) == len(parts), lines
    for line, part in zip(lines, parts, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE digest SET day = '2026-09-25' WHERE number = 2",
         ["digest of 2026-09-25: its entries", "digest of 2026-09-25: its signature"]),
        ("UPDATE digest SET created_us = 1 WHERE number = 2", ["2026-09-22: its signature"]),
        ("UPDATE digest SET signature = '' WHERE number = 2", ["2026-09-22: its signature"]),
        ("UPDATE digest SET key_id = 'x' WHERE number = 2", ["2026-09-22: signed with key x"]),
        ("DELETE FROM digest WHERE number = 2",
         ["digest 2 is missing after 2026-09-21, before that of 2026-09-23"]),
        ("DELETE FROM digest WHERE number = 1",
         ["digest 1 is missing from the beginning, before that of 2026-09-22"]),
    ],
)  # fmt: skip
def test_a_changed_digest_is_named(world: World, statement: str, said: list[str]) -> None:
    three_days(world)
    behind_their_back(world, statement)
    says(world, *said)


def test_an_entry_changed_with_the_hash_is_found_by_the_signature_and_the_chain(
    world: World,
) -> None:
    three_days(world)
    # Whoever has the database but no key: the row, its digest made anew, and signed by another.
    number, midnight = 2, MIDNIGHT + DAY_US + HOUR_US
    behind_their_back(
        world,
        f"UPDATE entry SET memo = 'x' WHERE id = {_SOME}",
        "DELETE FROM digest WHERE number = 3",
        "DELETE FROM digest WHERE number = 2",
    )
    made = world.database.read(lambda s: closing.next_digest(s, OTHER, midnight))
    assert made is not None and made.number == number
    assert world.database.write(lambda s: closing.add(s, made))
    assert any("signed with key" in line and "2026-09-22" in line for line in found(world))
    # With the right name of the key it does not fit either.
    with world.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE digest SET key_id = :key WHERE number = 2"),
            {"key": SIGNER.public.key_id},
        )
    assert any("2026-09-22: its signature" in line for line in found(world))


def test_a_digest_removed_at_the_end_is_known_from_what_was_written_since(world: World) -> None:
    three_days(world)
    behind_their_back(world, "DELETE FROM digest WHERE number = 3")
    # Up to here it could be a service that has just come back.
    assert found(world) == []
    passes(world, 3 * HOUR_US, HOUR_US)
    says(world, "no digest after that of 2026-09-22: what was written from 2026-09-23")
    behind_their_back_of_all = "DELETE FROM digest"
    with world.database.engine.begin() as connection:
        connection.execute(sa.text(behind_their_back_of_all))
    says(world, "no digest: what was written from 2026-09-21")


def test_the_key_may_change_and_the_old_one_is_still_needed(world: World) -> None:
    spawn(world, "ada", "quarter", [])
    passes(world, MIDNIGHT + HOUR_US - world.now, HOUR_US)
    tidy(world)
    passes(world, DAY_US, HOUR_US)
    tidy(world, OTHER)
    assert found(world, SIGNER, OTHER) == []
    (line,) = found(world, OTHER)
    assert line.startswith("digest of 2026-09-21: signed with key ")


def test_without_a_key_the_hashes_are_checked(world: World) -> None:
    three_days(world)

    def look() -> list[str]:
        return world.database.read(lambda s: list(closing.check(s, ())))

    behind_their_back(world, "UPDATE digest SET signature = '' WHERE number = 2")
    assert look() == []
    with world.database.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE entry SET memo = 'x' WHERE id = {_SOME}"))
    assert len(look()) == 1
