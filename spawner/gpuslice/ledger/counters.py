"""The projections of use per account: one door for all that reads or changes them.

Everything runs in the caller's transaction. A change is an ``UPDATE … SET x = x + d``, so two
transactions never overwrite each other; `gpuslice.ledger.verify` rebuilds every figure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from gpuslice.ledger.tables import AccountPeriod, LeaseAccount, SliceTotal
from gpuslice.units import MINUTE_US

LIFE = "life"
BUCKET = "bucket"
#: Every time zone's offset is a multiple of a quarter of an hour, so every period is whole ones.
BUCKET_US = 15 * MINUTE_US


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
    _insert_or(session, account_id, slice_type, LIFE, 0)


def spend(
    session: Session, account_ids: Iterable[int], moment: int, spent_u: int, gpu_time_us: int
) -> None:
    """Count a segment, or take one back (negative), for all accounts of its lease."""
    if not spent_u and not gpu_time_us:
        return
    start = bucket(moment)
    for account_id in sorted(account_ids):
        for period, at in ((LIFE, 0), (BUCKET, start)):
            _insert_or(session, account_id, "", period, at, spent_u=spent_u, gpu_us=gpu_time_us)


def hold(session: Session, account_ids: Iterable[int], held_u: int, held_gpu_us: int) -> None:
    """Reserve more for all accounts of a lease, or less (negative)."""
    if not held_u and not held_gpu_us:
        return
    for account_id in sorted(account_ids):
        _insert_or(session, account_id, "", LIFE, 0, held_u=held_u, held_gpu_us=held_gpu_us)


def enter(session: Session, account_ids: Iterable[int], slice_type: str) -> None:
    """One slice more on each account, whatever its limits are."""
    for account_id in sorted(account_ids):
        for name in ("", slice_type):
            _insert_or(session, account_id, name, LIFE, 0, active=1)


def leave(session: Session, account_ids: Iterable[int], slice_type: str) -> None:
    """One slice less on each account."""
    for account_id in sorted(account_ids):
        for name in ("", slice_type):
            _insert_or(session, account_id, name, LIFE, 0, active=-1)


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


def _insert_or(
    session: Session, account_id: int, slice_type: str, period: str, start_us: int, **add: int
) -> None:
    """Add to a row, which is made if it is not there."""
    key = {
        "account_id": account_id, "slice_type": slice_type, "period": period,
        "start_us": start_us,
    }  # fmt: skip
    table = AccountPeriod.__table__
    if add:
        done = session.execute(
            sa.update(AccountPeriod)
            .where(*(table.c[name] == value for name, value in key.items()))
            .values({name: table.c[name] + value for name, value in add.items()})
            .execution_options(synchronize_session=False)
        )
        if done.rowcount == 1:  # type: ignore[attr-defined]
            return
    zero = dict.fromkeys(("spent_u", "held_u", "active", "gpu_us", "held_gpu_us"), 0)
    # Another transaction may make the row at the same time: then what is added is added to it.
    made = _insert(session)(AccountPeriod).values(key | zero | add)
    if add:
        changed = made.on_conflict_do_update(
            index_elements=list(key),
            set_={name: table.c[name] + value for name, value in add.items()},
        )
    else:
        changed = made.on_conflict_do_nothing()
    session.execute(changed)
