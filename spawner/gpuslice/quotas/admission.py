"""Admission: takes one place under every limit of an account, or refuses and says which limit."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.errors import Refused
from gpuslice.ledger.tables import AccountPeriod
from gpuslice.quotas.policies import CONCURRENT_SLICES, limit_for


def admit(session: Session, account_id: int, groups: Sequence[str]) -> None:
    """Count one more lease on the account, in the caller's transaction.

    Raises:
        Refused: ``leases-limit``; nothing was changed.
    """
    limit = limit_for(session, account_id, groups, CONCURRENT_SLICES)
    _ensure_row(session, account_id)
    guard = sa.true() if limit.value is None else AccountPeriod.active < limit.value
    taken = session.execute(
        sa.update(AccountPeriod)
        .where(AccountPeriod.account_id == account_id, AccountPeriod.slice_type == "", guard)
        .values(active=AccountPeriod.active + 1)
        .execution_options(synchronize_session=False)
    )
    if taken.rowcount == 1:  # type: ignore[attr-defined]
        return
    slices = "slice" if limit.value == 1 else "slices"
    raise Refused(
        "leases-limit",
        f"You may hold {limit.value} {slices} at a time ({limit.source}) and hold as many already; "
        "stop one of your servers first, or ask an administrator for more.",
        status=409,
        limit=f"{limit.value} {slices} at a time",
    )


def leave(session: Session, account_id: int) -> None:
    """Give the place back when a lease has ended."""
    session.execute(
        sa.update(AccountPeriod)
        .where(AccountPeriod.account_id == account_id, AccountPeriod.slice_type == "")
        .values(active=AccountPeriod.active - 1)
        .execution_options(synchronize_session=False)
    )


def _ensure_row(session: Session, account_id: int) -> None:
    if session.get(AccountPeriod, (account_id, "", "life", 0)) is None:
        session.add(AccountPeriod(account_id=account_id))
        session.flush()
