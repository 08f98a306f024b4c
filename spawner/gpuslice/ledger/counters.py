"""The projections of use per account: one door for all that reads or changes them.

Everything runs in the caller's transaction. A change is an ``UPDATE … SET x = x + d``, so two
transactions never overwrite each other; `gpuslice.ledger.verify` rebuilds every figure. Changes
for many leases are summed up in a `Tally` and written together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from gpuslice.ledger.tables import AccountPeriod, LeaseAccount, SliceTotal
from gpuslice.units import MINUTE_US

LIFE = "life"
BUCKET = "bucket"
#: Every time zone's offset is a multiple of a quarter of an hour, so every period is whole ones.
BUCKET_US = 15 * MINUTE_US


#: What a row of `AccountPeriod` counts for, and what it counts.
_KEY = ("account_id", "slice_type", "period", "start_us")
_FIGURES = ("spent_u", "held_u", "active", "gpu_us", "held_gpu_us")
_Key = tuple[int, str, str, int]


@dataclass(frozen=True)
class Used:
    """What was used and is billed: micro-units, and microseconds of a whole GPU."""

    spent_u: int = 0
    gpu_us: int = 0


@dataclass(frozen=True)
class Held:
    """What is reserved now, and how many slices are held."""

    held_u: int = 0
    held_gpu_us: int = 0
    active: int = 0


def bucket(moment: int) -> int:
    """The start of the quarter of an hour that ``moment`` is in."""
    return moment // BUCKET_US * BUCKET_US


def gpu_us(from_us: int, til_us: int, gpu_milli: int) -> int:
    """GPU time of a segment: its length by the share of a GPU, rounded down."""
    return (til_us - from_us) * gpu_milli // 1000


def of_lease(session: Session, lease_id: str) -> list[int]:
    """The accounts that a lease counts for: its user's first, then the group's and those above."""
    return list(
        session.scalars(
            sa.select(LeaseAccount.account_id)
            .where(LeaseAccount.lease_id == lease_id)
            .order_by(LeaseAccount.depth)
        )
    )


_USED = (
    sa.select(
        AccountPeriod.account_id,
        sa.func.sum(AccountPeriod.spent_u),
        sa.func.sum(AccountPeriod.gpu_us),
    )
    .where(
        AccountPeriod.account_id.in_(sa.bindparam("accounts", expanding=True)),
        # Buckets have no slice type: with it, the key's order finds just the rows that count.
        AccountPeriod.slice_type == "",
        AccountPeriod.period == sa.bindparam("period"),
        AccountPeriod.start_us >= sa.bindparam("start"),
        AccountPeriod.start_us < sa.bindparam("til"),
    )
    .group_by(AccountPeriod.account_id)
)
#: Later than everything.
_NEVER_US = (1 << 63) - 1


def of_leases(session: Session, lease_ids: Collection[str]) -> dict[str, list[int]]:
    """The accounts that each of these leases counts for, in the order of `of_lease`."""
    rows = session.execute(
        sa.select(LeaseAccount.lease_id, LeaseAccount.account_id)
        .where(LeaseAccount.lease_id.in_(lease_ids))
        .order_by(LeaseAccount.lease_id, LeaseAccount.depth)
    )
    found: dict[str, list[int]] = {lease_id: [] for lease_id in lease_ids}
    for lease_id, account_id in rows:
        found[lease_id].append(account_id)
    return found


def used(
    session: Session, account_ids: Collection[int], start_us: int, til_us: int | None = None
) -> dict[int, Used]:
    """What each account has used in ``[start_us, til_us)``; ``start_us`` 0: ever."""
    ever = start_us <= 0 and til_us is None
    rows = session.execute(
        _USED,
        {
            "accounts": list(account_ids),
            "period": LIFE if ever else BUCKET,
            "start": 0 if ever else start_us,
            "til": _NEVER_US if til_us is None else til_us,
        },
    )
    found = {account_id: Used(int(spent), int(gpu)) for account_id, spent, gpu in rows}
    return {account_id: found.get(account_id, Used()) for account_id in account_ids}


def buckets(session: Session, account_id: int, start_us: int) -> list[tuple[int, Used]]:
    """An account's quarters of an hour from ``start_us`` on, oldest first."""
    rows = session.execute(
        sa.select(AccountPeriod.start_us, AccountPeriod.spent_u, AccountPeriod.gpu_us)
        .where(
            AccountPeriod.account_id == account_id,
            AccountPeriod.slice_type == "",
            AccountPeriod.period == BUCKET,
            AccountPeriod.start_us >= start_us,
        )
        .order_by(AccountPeriod.start_us)
    )
    return [(start, Used(spent, gpu)) for start, spent, gpu in rows]


def held(session: Session, account_id: int, slice_type: str = "") -> Held:
    """What an account holds now; with a slice type only how many slices of it."""
    row = session.execute(
        sa.select(AccountPeriod.held_u, AccountPeriod.held_gpu_us, AccountPeriod.active).where(
            *_life(account_id, slice_type)
        )
    ).one_or_none()
    return Held() if row is None else Held(*row)


_HELD_BY = sa.select(
    AccountPeriod.account_id, AccountPeriod.slice_type, AccountPeriod.held_u,
    AccountPeriod.held_gpu_us, AccountPeriod.active,
).where(
    AccountPeriod.account_id.in_(sa.bindparam("accounts", expanding=True)),
    AccountPeriod.slice_type.in_(sa.bindparam("slice_types", expanding=True)),
    AccountPeriod.period == LIFE,
    AccountPeriod.start_us == 0,
)  # fmt: skip


def held_by(
    session: Session, account_ids: Collection[int], slice_type: str
) -> dict[tuple[int, str], Held]:
    """What accounts hold now, of all slice types (under ``""``) and of one."""
    rows = session.execute(
        _HELD_BY, {"accounts": list(account_ids), "slice_types": ["", slice_type]}
    )
    found = {(one, name): Held(*figures) for one, name, *figures in rows}
    names = ("", slice_type)
    return {(one, name): found.get((one, name), Held()) for one in account_ids for name in names}


def ensure(session: Session, account_id: int, slice_type: str = "") -> None:
    """Have the account's row that counts what it holds now."""
    _make(session, [(account_id, slice_type, LIFE, 0)])


class Tally:
    """Changes that are written together, each row once, in ascending order of accounts."""

    def __init__(self) -> None:
        self._rows: dict[_Key, list[int]] = defaultdict(lambda: [0] * len(_FIGURES))
        self._slices: dict[tuple[str, str], tuple[int, int]] = {}

    def spend(
        self, account_ids: Iterable[int], moment: int, spent_u: int, gpu_time_us: int
    ) -> None:
        """Count a segment, or take one back (negative), for all accounts of its lease."""
        start = bucket(moment)
        for account_id in account_ids:
            for period, at in ((LIFE, 0), (BUCKET, start)):
                self._add((account_id, "", period, at), spent_u=spent_u, gpu_us=gpu_time_us)

    def hold(self, account_ids: Iterable[int], held_u: int, held_gpu_us: int) -> None:
        """Reserve more for all accounts of a lease, or less (negative)."""
        for account_id in account_ids:
            self._add((account_id, "", LIFE, 0), held_u=held_u, held_gpu_us=held_gpu_us)

    def active(self, account_ids: Iterable[int], slice_type: str, count: int) -> None:
        """So many slices more on each account, or fewer (negative), whatever its limits are."""
        for account_id in account_ids:
            for name in ("", slice_type):
                self._add((account_id, name, LIFE, 0), active=count)

    def of_slice(self, slice_type: str, what: str, time_us: int, amount_u: int) -> None:
        """Count time and money of a slice type; ``what`` as `SliceTotal` says."""
        time_before, amount_before = self._slices.get((slice_type, what), (0, 0))
        self._slices[slice_type, what] = (time_before + time_us, amount_before + amount_u)

    def write(self, session: Session) -> None:
        """Write all of it; what adds up to nothing is not written."""
        keys = sorted(key for key, figures in self._rows.items() if any(figures))
        _make(session, keys)
        if keys:
            rows = [
                {f"key_{name}": value for name, value in zip(_KEY, key, strict=True)}
                | {f"add_{name}": n for name, n in zip(_FIGURES, self._rows[key], strict=True)}
                for key in keys
            ]
            session.execute(_ADD, rows)
        for (slice_type, what), (time_us, amount_u) in sorted(self._slices.items()):
            add_to_slice(session, slice_type, what, time_us, amount_u)

    def _add(self, key: _Key, **figures: int) -> None:
        row = self._rows[key]
        for name, value in figures.items():
            row[_FIGURES.index(name)] += value


def spend(
    session: Session, account_ids: Iterable[int], moment: int, spent_u: int, gpu_time_us: int
) -> None:
    """`Tally.spend` for one segment."""
    tally = Tally()
    tally.spend(account_ids, moment, spent_u, gpu_time_us)
    tally.write(session)


def enter(session: Session, account_ids: Iterable[int], slice_type: str) -> None:
    """One slice more on each account, whatever its limits are."""
    tally = Tally()
    tally.active(account_ids, slice_type, 1)
    tally.write(session)


def leave(session: Session, account_ids: Iterable[int], slice_type: str) -> None:
    """One slice less on each account."""
    tally = Tally()
    tally.active(account_ids, slice_type, -1)
    tally.write(session)


def add_to_slice(session: Session, slice_type: str, what: str, time_us: int, amount_u: int) -> None:
    """Count time and money of a slice type; ``what`` as `SliceTotal` says."""
    made = _insert(session)(SliceTotal).values(
        slice_type=slice_type, what=what, us=time_us, amount_u=amount_u
    )
    table = SliceTotal.__table__
    session.execute(
        made.on_conflict_do_update(
            index_elements=["slice_type", "what"],
            set_={"us": table.c.us + time_us, "amount_u": table.c.amount_u + amount_u},
        )
    )


def of_slices(session: Session) -> dict[tuple[str, str], tuple[int, int]]:
    """Time and money ever, by slice type and what: a row each, however many entries there are."""
    rows = session.execute(
        sa.select(SliceTotal.slice_type, SliceTotal.what, SliceTotal.us, SliceTotal.amount_u)
    )
    return {(slice_type, what): (time_us, amount) for slice_type, what, time_us, amount in rows}


def _insert(session: Session) -> Any:
    """The database's own INSERT, which knows what to do on a conflict."""
    return postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert


def _life(account_id: int, slice_type: str) -> list[sa.ColumnElement[bool]]:
    return [
        AccountPeriod.account_id == account_id,
        AccountPeriod.slice_type == slice_type,
        AccountPeriod.period == LIFE,
        AccountPeriod.start_us == 0,
    ]


#: As a table and not as a class: one statement that is run for many rows.
_TABLE = cast(sa.Table, AccountPeriod.__table__)
_ADD = (
    sa.update(_TABLE)
    .where(*(_TABLE.c[name] == sa.bindparam(f"key_{name}") for name in _KEY))
    .values({name: _TABLE.c[name] + sa.bindparam(f"add_{name}") for name in _FIGURES})
)


def _make(session: Session, keys: Collection[_Key]) -> None:
    """Have these rows; another transaction may make the same ones at the same time.

    Not together with what is added to them: a row that would begin below nothing is refused,
    even where there is one already.
    """
    if keys:
        zero = dict.fromkeys(_FIGURES, 0)
        session.execute(
            _insert(session)(_TABLE).on_conflict_do_nothing(),
            [dict(zip(_KEY, key, strict=True)) | zero for key in keys],
        )
