"""Credit: money given to an account in advance, and which of it pays what.

A grant is used in the order of its priority, then of its expiry (the sooner first); a payment
that one grant cannot cover is split into legs. A grant that has expired before a segment began
pays nothing of it; what is left then goes back by an entry of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from gpuslice.errors import Refused
from gpuslice.ledger import accounts
from gpuslice.ledger.tables import CreditGrant, Entry
from gpuslice.units import HOUR_US, MAX_MONEY_U

#: What is left of an expired grant goes back so much later: segments from before its end, which
#: are paid at the next full hour or after an outage, may still need it.
EXPIRY_LAG_US = 48 * HOUR_US


@dataclass(frozen=True)
class Leg:
    """A part of a payment: who owes it, out of which grant (None: none)."""

    account_id: int
    amount_u: int
    grant_id: int | None


def give(
    session: Session, account_id: int, amount_u: int, *, key: str, actor: str, reason: str,
    now: int, priority: int = 0, expires_us: int | None = None,
) -> CreditGrant:  # fmt: skip
    """Grant credit: the row and the entry that moves it from the platform.

    Args:
        key: Permanent and unique: the same grant twice fails on it.

    Raises:
        Refused: nothing, too much, or expired already.
    """
    if not 0 < amount_u <= MAX_MONEY_U:
        raise Refused("bad-amount", "A credit is more than nothing.", status=422)
    if expires_us is not None and expires_us <= now:
        raise Refused("bad-expiry", "This credit would have expired already.", status=422)
    grant = CreditGrant(
        account_id=account_id, amount_u=amount_u, priority=priority, expires_us=expires_us,
        created_us=now,
    )  # fmt: skip
    session.add(grant)
    session.flush()
    session.add(
        Entry(
            idem_key=f"credit:{key}", kind="credit", grant_id=grant.id, amount_u=amount_u,
            debit_id=accounts.platform(session, "grants", now), credit_id=account_id,
            actor=actor[:255], memo=reason[:500], created_us=now,
        )
    )  # fmt: skip
    session.flush()
    return grant


def left(session: Session, account_id: int, at: int) -> int:
    """What an account's own grants that are usable at ``at`` still hold."""
    return left_of_each(session, [account_id], at)[account_id]


def left_of_each(session: Session, account_ids: Collection[int], at: int) -> dict[int, int]:
    """`left` of many accounts."""
    rows = session.execute(
        sa.select(CreditGrant.account_id, sa.func.sum(CreditGrant.amount_u - CreditGrant.used_u))
        .where(
            CreditGrant.account_id.in_(account_ids),
            sa.or_(CreditGrant.expires_us.is_(None), CreditGrant.expires_us > at),
        )
        .group_by(CreditGrant.account_id)
    )
    found = {account_id: int(rest) for account_id, rest in rows}
    return {account_id: found.get(account_id, 0) for account_id in account_ids}


@dataclass
class _Rest:
    """What there is of a grant; ``order`` is its place among all that were read."""

    order: int
    grant_id: int
    account_id: int
    left_u: int
    expires_us: int | None
    taken_u: int = 0


class Purse:
    """The credit of some accounts, read once, from which many payments are taken.

    What was taken is written by `write`; the row's constraint is the guard.
    """

    def __init__(self, session: Session, account_ids: Collection[int]) -> None:
        self._session = session
        self._of: dict[int, list[_Rest]] = defaultdict(list)
        rows = session.execute(
            sa.select(
                CreditGrant.id, CreditGrant.account_id,
                CreditGrant.amount_u - CreditGrant.used_u, CreditGrant.expires_us,
            )
            .where(
                CreditGrant.account_id.in_(account_ids), CreditGrant.used_u < CreditGrant.amount_u
            )
            .order_by(
                CreditGrant.priority, CreditGrant.expires_us.is_(None), CreditGrant.expires_us,
                CreditGrant.id,
            )
        )  # fmt: skip
        for order, (grant_id, account_id, rest, expires_us) in enumerate(rows):
            self._of[account_id].append(_Rest(order, grant_id, account_id, rest, expires_us))

    def usable(self, account_ids: Collection[int], at: int) -> list[_Rest]:
        """What these accounts may pay with at ``at``, in the order in which it is used."""
        found = [
            rest
            for account_id in account_ids
            for rest in self._of.get(account_id, ())
            if rest.left_u and (rest.expires_us is None or rest.expires_us > at)
        ]
        return sorted(found, key=lambda rest: rest.order)

    def take(
        self, account_ids: Collection[int], payer_id: int, amount_u: int, at: int
    ) -> list[Leg]:
        """Pay ``amount_u`` for what began at ``at``: from grants as far as they go, the rest
        owed."""
        legs = []
        for rest in self.usable(account_ids, at):
            if not amount_u:
                break
            part = min(amount_u, rest.left_u)
            rest.left_u -= part
            rest.taken_u += part
            legs.append(Leg(rest.account_id, part, rest.grant_id))
            amount_u -= part
        if amount_u:
            legs.append(Leg(payer_id, amount_u, None))
        return legs

    def write(self) -> None:
        """Write what was taken."""
        taken = [
            {"grant_id": rest.grant_id, "taken_u": rest.taken_u}
            for of_account in self._of.values()
            for rest in of_account
            if rest.taken_u
        ]
        if taken:
            taken.sort(key=lambda row: row["grant_id"])
            self._session.execute(_TAKE, taken)


_TABLE = cast(sa.Table, CreditGrant.__table__)
_TAKE = (
    sa.update(_TABLE)
    .where(_TABLE.c.id == sa.bindparam("grant_id"))
    .values(used_u=_TABLE.c.used_u + sa.bindparam("taken_u"))
)


def use(session: Session, grant_id: int, amount_u: int) -> None:
    """Use a part of a grant, or give it back (negative); the row's constraint is the guard."""
    session.execute(
        sa.update(CreditGrant)
        .where(CreditGrant.id == grant_id)
        .values(used_u=CreditGrant.used_u + amount_u)
        .execution_options(synchronize_session=False)
    )


def renew(
    session: Session, grant: CreditGrant, amount_u: int, *, key: str, actor: str, reason: str,
    now: int, expires_us: int,
) -> CreditGrant:  # fmt: skip
    """Give credit anew that has come back into a grant that expired.

    It leaves the old grant at once: late payments from before its end must not use it, too.
    """
    _take_back(session, grant, amount_u, key=key, actor=actor, memo=reason, now=now)
    return give(
        session, grant.account_id, amount_u, key=key, actor=actor, reason=reason, now=now,
        priority=grant.priority, expires_us=expires_us,
    )  # fmt: skip


def expire(session: Session, now: int) -> int:
    """Take back what is left of grants long expired; returns how many there were.

    Idempotent: a grant that is used up has nothing left to take.
    """
    due = session.scalars(
        sa.select(CreditGrant)
        .where(
            CreditGrant.expires_us <= now - EXPIRY_LAG_US, CreditGrant.used_u < CreditGrant.amount_u
        )
        .order_by(CreditGrant.id)
        .execution_options(populate_existing=True)
    ).all()
    for grant in due:
        rest = grant.amount_u - grant.used_u
        _take_back(session, grant, rest, key=str(now), actor="meter", memo="expired", now=now)
    return len(due)


def take_back(session: Session, account_id: int, *, actor: str, reason: str, now: int) -> int:
    """Take back all that is left of an account's credit; returns how much that was."""
    grants = session.scalars(
        sa.select(CreditGrant)
        .where(CreditGrant.account_id == account_id, CreditGrant.used_u < CreditGrant.amount_u)
        .order_by(CreditGrant.id)
        .execution_options(populate_existing=True)
    ).all()
    left_u = sum(grant.amount_u - grant.used_u for grant in grants)
    for grant in grants:
        rest = grant.amount_u - grant.used_u
        _take_back(session, grant, rest, key=str(now), actor=actor, memo=reason, now=now)
    return left_u


def _take_back(
    session: Session, grant: CreditGrant, amount_u: int, *, key: str, actor: str, memo: str,
    now: int,
) -> None:  # fmt: skip
    use(session, grant.id, amount_u)
    session.add(
        Entry(
            idem_key=f"expiry:{grant.id}:{key}", kind="expiry", grant_id=grant.id,
            amount_u=amount_u, debit_id=grant.account_id,
            credit_id=accounts.platform(session, "grants", now),
            actor=actor[:255], memo=memo[:500], created_us=now,
        )
    )  # fmt: skip
    session.flush()
