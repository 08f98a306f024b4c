"""Messages about money: prices, credit, corrections, entries, usage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpuslice.units import MAX_MONEY_U
from gpuslice.wire import LeaseId, Micros, Moment, Money, Reason, SliceName, UserName, Wire

Amount = Annotated[int, Field(gt=0, le=MAX_MONEY_U)]
PriceList = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Whose = Literal["user", "group"]


class PriceView(Wire):
    """What a slice type costs from a moment on; ``til_us`` null: until further notice."""

    price_list: str
    slice: str
    rate_u_per_hour: Money
    from_us: Micros
    til_us: Micros | None
    actor: str


class SetPrice(Wire):
    """Announces a price. ``from_us`` null: from now on. It is never changed again; another one
    from later on may follow it."""

    price_list: PriceList = "default"
    slice: SliceName
    rate_u_per_hour: Annotated[int, Field(ge=0, le=MAX_MONEY_U)]
    from_us: Moment | None = None
    reason: Reason


class PricePreview(Wire):
    """What a price would change: running leases that would pay it, and their rate until then.

    ``til_us``: a price that is announced already follows it then.
    """

    leases: list[LeaseId]
    rate_now_u_per_hour: Money | None
    til_us: Micros | None = None


class GiveCredit(Wire):
    """Credit for an account. Lower ``priority`` is used first, then what expires sooner."""

    whose: Whose
    name: UserName
    amount_u: Amount
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    expires_us: Moment | None = None
    reason: Reason


class CreditView(Wire):
    """Credit as it was given and what of it is used."""

    credit_id: int
    whose: Literal["user", "group", "platform"]
    name: str
    amount_u: Money
    used_u: Money
    priority: int
    expires_us: Micros | None
    created_us: Micros


class GrantMore(Wire):
    """Lets a running lease go on: by time (whatever its limits say), by money, or both.

    Money raises every limit on money that binds it, until the end of the period; where credit is
    needed it is given to its user.
    """

    until_us: Moment | None = None
    money_u: Amount | None = None
    reason: Reason


class Correct(Wire):
    """Gives back a part of what an entry paid, or takes more."""

    entry_id: Annotated[int, Field(ge=1, le=1 << 62)]
    kind: Literal["refund", "surcharge"]
    amount_u: Amount
    reason: Reason


class RefundLease(Wire):
    """Gives back so much of what a lease cost its user, the newest payments first; null: all."""

    amount_u: Amount | None = None
    reason: Reason


class EntryView(Wire):
    """One row of the ledger. Accounts are ``kind:name``."""

    entry_id: int
    at_us: Micros
    kind: str
    debit: str
    credit: str
    amount_u: Money
    lease_id: LeaseId | None
    slice: str | None
    from_us: Micros | None
    til_us: Micros | None
    credit_id: int | None
    corrects: int | None
    actor: str
    memo: str


class DigestView(Wire):
    """What was written until the end of a day, as one signed hash.

    It covers the entries from ``first_entry`` to ``last_entry``; ``previous`` is the hash of the
    digest before it. With the public key and these fields anybody can check the signature.
    """

    number: int
    #: ISO date, UTC.
    day: str
    first_entry: int | None
    last_entry: int | None
    entries: int
    sha256: str
    previous: str
    key_id: str
    signature: str
    created_us: Micros


class Day(Wire):
    """One day of use: from local midnight to local midnight."""

    from_us: Micros
    spent_u: Money
    gpu_us: int


class Usage(Wire):
    """What an account has used and holds, and what of its limits is left."""

    name: str
    currency: str
    spent_u: int
    gpu_us: int
    held_u: Money
    active: int
    credit_u: Money
    days: list[Day]
