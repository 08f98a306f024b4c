"""A ledger of any size, written into the tables at once: what the benchmarks of it measure on.

On every second day each user (as many as there are slices for) has one server for nine hours: ten
segments and the ten entries that pay them. The last ones still run. Everything that
`gpuslice ledger verify` looks at is there and fits: claims, holds, projections, digests.

``python benchmarks/books.py sqlite:////tmp/books.sqlite --entries 10000000``
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from gpuslice.broker.snapshot import HOST
from gpuslice.ledger import accounts, closing, migrate
from gpuslice.ledger.database import Database
from gpuslice.ledger.digest import Signer
from gpuslice.ledger.tables import Device, Node, Price
from gpuslice.quotas import policies
from gpuslice.quotas.documents import PolicyDocument
from gpuslice.units import GIB, HOUR_US, SECOND_US

#: The end of the books: as the clock of `ledgerworld.World` starts. 2026-09-21 14:13:20 UTC.
NOW_US = 1_790_000_000_000_000
DAY_US = 24 * HOUR_US
NODE = "node-1"
SLICE = "quarter"
RATES = (800_000, 875_001)
#: Entries of one ended lease, and leases that fit on one device.
ENTRIES = 10
SLOTS = 4
USERS_IN_A_GROUP = 100
HORIZON_US = 600 * SECOND_US
_MODEL = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True)
class Size:
    """How much of everything; at most as many leases live as there are users and slices."""

    devices: int = 100
    users: int = 1_000
    entries: int = 100_000
    live: int = 100

    def __post_init__(self) -> None:
        if min(self.devices, self.users, self.entries) < 1:
            raise ValueError("books have a device, a user and an entry at least")
        if not 0 <= self.live <= min(self.users, SLOTS * self.devices):
            raise ValueError("so many leases cannot live: one a user, four a device")

    @property
    def groups(self) -> int:
        return -(-self.users // USERS_IN_A_GROUP)

    @property
    def leases(self) -> int:
        """How many have ended."""
        return -(-self.entries // ENTRIES)

    @property
    def daily(self) -> int:
        """How many end on one day."""
        return max(1, min(self.users // 2, SLOTS * self.devices))

    @property
    def days(self) -> int:
        return -(-self.leases // self.daily)

    @property
    def first_us(self) -> int:
        """The midnight (UTC) at which the books begin; they end with yesterday."""
        return NOW_US // DAY_US * DAY_US - self.days * DAY_US


def user(number: int) -> str:
    """A user's name; from 0 on."""
    return f"user{number}"


def device(number: int) -> str:
    """A device's UUID; from 0 on."""
    return f"GPU-{100_000 + number}"


def make(url: str, size: Size, *, told: bool = False) -> None:
    """Fill the empty database at ``url``.

    Args:
        told: Say on standard error how far it is.

    Raises:
        LedgerError: the database cannot be used.
        ValueError: there is a ledger with accounts in it already.
    """
    database = Database(url)
    try:
        if database.engine.dialect.name == "sqlite":
            event.listen(database.engine, "connect", _hurry)
        migrate.upgrade(database.engine)
        with database.engine.connect() as connection:
            if connection.execute(sa.text("SELECT COUNT(*) FROM account")).scalar_one():
                raise ValueError(f"{database.name} is not empty")
            _Maker(connection, size, told).make()
        _tidy(database.engine)
    finally:
        database.close()


def _hurry(raw: Any, _record: object) -> None:
    """What is lost with the machine is made again; every row that is named is there."""
    for pragma in ("synchronous=OFF", "foreign_keys=OFF", "cache_size=-1000000"):
        raw.execute(f"PRAGMA {pragma}")


def _tidy(engine: sa.Engine) -> None:
    """As a database is that was not filled in one go."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("VACUUM (ANALYZE)")
    if engine.dialect.name == "sqlite":
        raw = engine.raw_connection()
        raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.close()


class _Maker:
    """Writes the books on one connection, a transaction a day."""

    def __init__(self, connection: sa.Connection, size: Size, told: bool) -> None:
        self._connection = connection
        self._size = size
        self._told = told
        self._postgres = connection.dialect.name == "postgresql"
        self._signer = Signer("5a" * 32)
        self._revenue = 0
        self._first_account = 0
        #: The price of a day is the newest that began by then.
        self._prices: list[Price] = []

    def make(self) -> None:
        self._begin()
        self._connection.commit()
        began = time.monotonic()
        for day in range(self._size.days):
            self._day(day)
            self._connection.commit()
            if self._told and (day + 1) % 20 == 0:
                left = (time.monotonic() - began) / (day + 1) * (self._size.days - day - 1)
                sys.stderr.write(f"day {day + 1} of {self._size.days}, {left:.0f} s to go\n")
        self._live()
        self._end()
        self._connection.commit()

    def _do(self, statement: str, **values: object) -> None:
        self._connection.execute(sa.text(statement), values)

    def _begin(self) -> None:
        """Accounts, devices, prices and policies."""
        size = self._size
        if self._postgres and self._connection.scalar(
            sa.text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        ):
            # Foreign keys are not looked up row by row.
            self._connection.exec_driver_sql("SET session_replication_role = replica")
        since = size.first_us - DAY_US
        with Session(self._connection, expire_on_commit=False) as session:
            self._platform(session, since)
            numbers = {
                "first": self._first_account, "groups": size.groups, "users": size.users,
                "since": since,
            }  # fmt: skip
            for statement in (_GROUPS, _USERS, _NAMES):
                self._do(statement, **numbers)
            self._policies(session, since)
            session.commit()
        self._do(_STAGE)

    def _platform(self, session: Session, since: int) -> None:
        """The platform's accounts, its node with the devices, and the prices."""
        size = self._size
        ids = [accounts.platform(session, name, since) for name in accounts.PLATFORM]
        self._revenue, self._first_account = ids[accounts.PLATFORM.index("revenue")], max(ids) + 1
        session.add(
            Node(
                id=NODE, engine="local", boot_id="boot-1", simulated=True, driver_version="580.0",
                gpu_problem=None, enforcement_ceiling=0, seen_us=NOW_US, boottime_us=NOW_US,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            Device(node_id=NODE, id=HOST, kind="host", position=-1, model="host",
                   memory_bytes=512 * GIB, cpu_milli=64_000, seen_us=NOW_US)
        )  # fmt: skip
        session.add_all(
            Device(node_id=NODE, id=device(number), kind="gpu", position=number, model=_MODEL,
                   memory_bytes=80 * GIB, simulated=True, seen_us=NOW_US)
            for number in range(size.devices)
        )  # fmt: skip
        middle = size.first_us + size.days // 2 * DAY_US
        self._prices = [
            Price(price_list="default", slice_type=SLICE, rate_u_per_hour=rate,
                  effective_from_us=start, actor="benchmark", created_us=since)
            for rate, start in zip(RATES, (since, middle), strict=True)
        ]  # fmt: skip
        session.add_all(self._prices)
        session.flush()

    def _policies(self, session: Session, since: int) -> None:
        """Everybody's, each group's, and every tenth user's own."""
        size = self._size
        for subject, account_id, document in (
            (policies.EVERYONE, None, {"each": {"slices": 4, "session_hours": 10_000}}),
            *(
                (policies.subject_of("group", account), account, _GROUP_POLICY)
                for account in range(self._first_account, self._first_account + size.groups)
            ),
        ):
            policies.set_policy(
                session, subject, account_id, PolicyDocument.model_validate(document),
                expected=None, actor="benchmark", reason="a benchmark", now=since,
            )  # fmt: skip
        own = PolicyDocument.model_validate(_USER_POLICY).model_dump_json(exclude_defaults=True)
        self._do(
            _USER_POLICIES, first=self._first_account + size.groups, users=size.users,
            document=own, since=since,
        )  # fmt: skip

    def _day(self, day: int) -> None:
        """The leases of one day, and the digest that closes it."""
        size = self._size
        before = day * size.daily
        midnight = size.first_us + day * DAY_US
        count = min(size.daily, size.leases - before)
        price = [one for one in self._prices if one.effective_from_us <= midnight][-1]
        self._stage(count, before, step=2, shift=day % 2, midnight=midnight)
        self._do(_ENDED)
        self._of_leases(day, live=0, amount=0, gpu=0)
        numbers = {"last": ENTRIES - 1, "low": before * ENTRIES, "high": (before + count) * ENTRIES}
        self._do(_SEGMENTS, price=price.id, rate=price.rate_u_per_hour, last=ENTRIES - 1)
        self._do(_ENTRIES, revenue=self._revenue, **numbers)
        self._do(_BUCKETS, **numbers)
        with Session(self._connection, expire_on_commit=False) as session:
            closes = midnight + DAY_US + closing.CLOSE_AFTER_US
            made = closing.next_digest(session, self._signer, closes)
            if made is None or not closing.add(session, made):
                raise RuntimeError(f"day {day} could not be closed")
            session.commit()

    def _live(self) -> None:
        """The leases that run now, since the last full hour."""
        size = self._size
        self._stage(size.live, size.leases, step=1, shift=0, midnight=NOW_US // DAY_US * DAY_US)
        self._do(_RUNNING, hour=NOW_US // HOUR_US * HOUR_US, now=NOW_US)
        ahead = NOW_US % HOUR_US + HORIZON_US
        self._of_leases(size.days, live=1, amount=RATES[-1] * ahead // HOUR_US, gpu=ahead // SLOTS)
        self._do(_ACTIVE)

    def _stage(self, count: int, before: int, **values: int) -> None:
        size = self._size
        self._do("DELETE FROM staged")
        self._do(
            _STAGED, count=count, before=before, devices=size.devices, users=size.users,
            groups=size.groups, first=self._first_account, **values,
        )  # fmt: skip

    def _of_leases(self, turn: int, **values: int) -> None:
        for statement in _OF_LEASES:
            self._do(
                statement, node=NODE, turn=turn, daily=self._size.daily, host=HOST, **values
            )  # fmt: skip

    def _end(self) -> None:
        """Projections, versions, and the numbers that the next rows get."""
        size = self._size
        self._do(_LIFE)
        self._do(_TOTALS)
        self._do(_VERSIONS, of_devices=(size.days + 1) * 2 * SLOTS, host=HOST,
                 of_host=size.days * 2 * size.daily + size.live)  # fmt: skip
        if self._postgres:
            for statement in _NUMBERS:
                self._do(statement)


_GROUP_POLICY = {
    "each": {"gpu_hours": [{"at_most": 200, "per": "week"}]},
    "total": {"money": [{"at_most": 1_000_000, "per": "month"}]},
}
_USER_POLICY = {"each": {"slices": 4, "money": [{"at_most": 1_000, "per": "month"}]}}

# --- statements, the same for both databases -----------------------------------------------------

_GROUPS = """
INSERT INTO account (id, kind, label, opened_us, version)
WITH RECURSIVE n(i) AS (
  SELECT CAST(0 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :groups)
SELECT :first + i, 'group', 'group' || CAST(i AS TEXT), :since, 1 FROM n
"""
_USERS = """
INSERT INTO account (id, kind, label, opened_us, version)
WITH RECURSIVE n(i) AS (
  SELECT CAST(0 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :users)
SELECT :first + :groups + i, 'user', 'user' || CAST(i AS TEXT), :since, 1 FROM n
"""
_NAMES = """
INSERT INTO account_name (source, name, account_id, valid_from_us)
SELECT CASE WHEN id < :first + :groups THEN 'hub:group' ELSE 'hub:user' END, label, id, :since
FROM account WHERE id >= :first ORDER BY id
"""
_USER_POLICIES = """
INSERT INTO policy (subject, account_id, version, document, valid_from_us, actor, reason)
SELECT 'user:' || CAST(id AS TEXT), id, 1, :document, :since, 'benchmark', 'a benchmark'
FROM account WHERE id >= :first AND id < :first + :users AND (id - :first) % 10 = 0 ORDER BY id
"""
_STAGE = """
CREATE TEMPORARY TABLE staged (
  n BIGINT PRIMARY KEY, j BIGINT, lease_id TEXT, account_id BIGINT, group_id BIGINT,
  user_name TEXT, groups TEXT, device_id TEXT, slot BIGINT, started_us BIGINT, hour_us BIGINT)
"""
# Ids are scattered as real ones are; three times of beginning, and no two minutes the same.
_STAGED = """
INSERT INTO staged
WITH RECURSIVE series(j) AS (
  SELECT CAST(0 AS BIGINT) UNION ALL SELECT j + 1 FROM series WHERE j + 1 < :count),
who(j, u, hour_us) AS (
  SELECT j, (j * :step + :shift) % :users, :midnight + (6 + j % 3) * 3600000000
  FROM series WHERE :count > 0)
SELECT :before + j, j,
  '000000000000000000000'
    || CAST(10000000000 + (:before + j) * 2654435761 % 4294967296 AS TEXT),
  :first + :groups + u, :first + u % :groups, 'user' || CAST(u AS TEXT),
  '["group' || CAST(u % :groups AS TEXT) || '"]', 'GPU-' || CAST(100000 + j % :devices AS TEXT),
  j / :devices, hour_us + (1 + j % 59) * 60000000 + j % 60 * 1000000, hour_us
FROM who
"""
_LEASE = """
INSERT INTO lease (
  id, attempt, account_id, user_name, server_name, node_id, slice_type, title, kind, device_id,
  device_model, memory_bytes, share_milli, enforcement, simulated, price_list, state, state_us,
  granted_us, start_before_us, boot_id, started_us, covered_us, billed_us, finished_us,
  finished_at_unknown, exit_code, end_reason, ended_us, gpu_milli, group_id, groups, hold_kind)
SELECT lease_id, lease_id, account_id, user_name, '', 'node-1', 'quarter', 'Quarter of an H100',
  'shared', device_id, 'NVIDIA H100 80GB HBM3', 20401094656, 250, 0, TRUE, 'default',
"""
_ENDED = f"""{_LEASE}
  'ended', started_us + 32401000000, started_us - 30000000, started_us + 30000000, 'boot-1',
  started_us, started_us + 32400000000, started_us + 32400000000, started_us + 32400000000,
  FALSE, 0, 'exited with code 0', started_us + 32401000000, 250, group_id, groups, 'rolling'
FROM staged ORDER BY n
"""
_RUNNING = f"""{_LEASE}
  'running', CAST(:hour AS BIGINT), :hour - 30000000, :hour + 30000000, 'boot-1',
  CAST(:hour AS BIGINT), CAST(:now AS BIGINT), CAST(:hour AS BIGINT), NULL,
  FALSE, NULL, NULL, NULL, 250, group_id, groups, 'rolling'
FROM staged ORDER BY n
"""
#: Of ended and running leases. A device's version is raised by each grant, then by each release.
_OF_LEASES = (
    """
    INSERT INTO lease_account (lease_id, account_id, depth)
    WITH two(depth) AS (SELECT 0 UNION ALL SELECT 1)
    SELECT lease_id, CASE depth WHEN 0 THEN account_id ELSE group_id END, depth
    FROM staged CROSS JOIN two ORDER BY n, depth
    """,
    """
    INSERT INTO claim (
      lease_id, node_id, device_id, whole, memory_bytes, share_milli, cpu_milli, ram_bytes,
      taken_version, released_version)
    SELECT lease_id, :node, device_id, FALSE, 20401094656, 250, 0, 0, :turn * 8 + slot + 1,
      CASE WHEN :live = 1 THEN NULL ELSE :turn * 8 + slot + 5 END
    FROM staged ORDER BY n
    """,
    """
    INSERT INTO claim (
      lease_id, node_id, device_id, whole, memory_bytes, share_milli, cpu_milli, ram_bytes,
      taken_version, released_version)
    SELECT lease_id, :node, :host, FALSE, 0, 0, 1, 1048576, :turn * 2 * :daily + j + 1,
      CASE WHEN :live = 1 THEN NULL ELSE :turn * 2 * :daily + :daily + j + 1 END
    FROM staged ORDER BY n
    """,
    """
    INSERT INTO hold (lease_id, account_id, amount_u, gpu_us, state, updated_us)
    WITH two(depth) AS (SELECT 0 UNION ALL SELECT 1)
    SELECT lease_id, CASE depth WHEN 0 THEN account_id ELSE group_id END, :amount, :gpu,
      CASE WHEN :live = 1 THEN 'open' ELSE 'closed' END, started_us
    FROM staged CROSS JOIN two ORDER BY n, depth
    """,
)
_SEGMENTS = """
INSERT INTO segment (id, lease_id, from_us, til_us, price_id, payer, amount_u, created_us)
WITH RECURSIVE series(k) AS (
  SELECT CAST(0 AS BIGINT) UNION ALL SELECT k + 1 FROM series WHERE k < :last),
cut(n, k, lease_id, started_us, from_us, til_us) AS (
  SELECT n, k, lease_id, started_us,
    CASE WHEN k = 0 THEN started_us ELSE hour_us + k * 3600000000 END,
    CASE WHEN k = :last THEN started_us ELSE hour_us + 3600000000 END + k * 3600000000
  FROM staged CROSS JOIN series)
SELECT n * (:last + 1) + k + 1, lease_id, from_us, til_us, :price, 'user',
  CAST(:rate AS BIGINT) * (til_us - started_us) / 3600000000
    - CAST(:rate AS BIGINT) * (from_us - started_us) / 3600000000,
  til_us + 1000000
FROM cut ORDER BY n, k
"""
_ENTRIES = """
INSERT INTO entry (
  id, idem_key, kind, debit_id, credit_id, amount_u, segment_id, leg, actor, memo, created_us)
SELECT s.id, 'usage:' || s.lease_id || ':' || CAST(s.from_us AS TEXT) || '\\:0', 'usage',
  w.account_id, :revenue, s.amount_u, s.id, 0, 'meter', '', s.created_us
FROM segment s JOIN staged w ON w.n = (s.id - 1) / (:last + 1)
WHERE s.id > :low AND s.id <= :high ORDER BY s.id
"""
_BUCKETS = """
INSERT INTO account_period (
  account_id, slice_type, period, start_us, spent_u, held_u, active, gpu_us, held_gpu_us)
WITH two(depth) AS (SELECT 0 UNION ALL SELECT 1),
used(account_id, start_us, amount_u, gpu_us) AS (
  SELECT CASE depth WHEN 0 THEN w.account_id ELSE w.group_id END,
    s.from_us - s.from_us % 900000000, s.amount_u, (s.til_us - s.from_us) * 250 / 1000
  FROM segment s JOIN staged w ON w.n = (s.id - 1) / (:last + 1) CROSS JOIN two
  WHERE s.id > :low AND s.id <= :high)
SELECT account_id, '', 'bucket', start_us, CAST(SUM(amount_u) AS BIGINT), 0, 0,
  CAST(SUM(gpu_us) AS BIGINT), 0
FROM used GROUP BY account_id, start_us
"""
_ACTIVE = """
INSERT INTO account_period (
  account_id, slice_type, period, start_us, spent_u, held_u, active, gpu_us, held_gpu_us)
SELECT account_id, 'quarter', 'life', 0, 0, 0, COUNT(*), 0, 0
FROM hold WHERE state = 'open' GROUP BY account_id
"""
_LIFE = """
INSERT INTO account_period (
  account_id, slice_type, period, start_us, spent_u, held_u, active, gpu_us, held_gpu_us)
SELECT a.id, '', 'life', 0, COALESCE(p.spent, 0), COALESCE(h.held, 0), COALESCE(h.live, 0),
  COALESCE(p.gpu, 0), COALESCE(h.gpu, 0)
FROM account a
LEFT JOIN (
  SELECT account_id, CAST(SUM(spent_u) AS BIGINT) AS spent, CAST(SUM(gpu_us) AS BIGINT) AS gpu
  FROM account_period WHERE period = 'bucket' GROUP BY account_id) p ON p.account_id = a.id
LEFT JOIN (
  SELECT account_id, CAST(SUM(amount_u) AS BIGINT) AS held, CAST(SUM(gpu_us) AS BIGINT) AS gpu,
    COUNT(*) AS live
  FROM hold WHERE state = 'open' GROUP BY account_id) h ON h.account_id = a.id
WHERE a.kind <> 'platform'
"""
_TOTALS = """
INSERT INTO slice_total (slice_type, what, us, amount_u)
SELECT 'quarter', 'user', CAST(SUM(til_us - from_us) AS BIGINT), CAST(SUM(amount_u) AS BIGINT)
FROM segment
"""
#: On PostgreSQL: a row that named its number did not take it from the sequence.
_NUMBERS = (
    "SELECT setval(pg_get_serial_sequence('account', 'id'), (SELECT MAX(id) FROM account))",
    "SELECT setval(pg_get_serial_sequence('segment', 'id'), (SELECT MAX(id) FROM segment))",
    "SELECT setval(pg_get_serial_sequence('entry', 'id'), (SELECT MAX(id) FROM entry))",
)
_VERSIONS = """
UPDATE device SET version = CASE WHEN id = :host THEN CAST(:of_host AS BIGINT)
  ELSE CAST(:of_devices AS BIGINT) END
"""


def add_size(parser: argparse.ArgumentParser, size: Size) -> None:
    """The options that say how large the books are."""
    for name in ("devices", "users", "entries", "live"):
        default = getattr(size, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")


def size_of(options: argparse.Namespace) -> Size:
    """What those options said."""
    return Size(options.devices, options.users, options.entries, options.live)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/books.py", description=__doc__)
    parser.add_argument("database", help="the URL of an empty database")
    add_size(parser, Size())
    options = parser.parse_args()
    make(options.database, size_of(options), told=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
