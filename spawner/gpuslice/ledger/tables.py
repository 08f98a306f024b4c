"""The ledger's tables as typed models: every fact the platform keeps, one class each.

Keys carry ``node_id`` from the start. Money is micro-units, time UTC microseconds, both
``BigInteger``: SQLite would store a Numeric as a float and drop a time zone.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

#: SQLite autoincrements only a column declared INTEGER.
BigId = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Big = sa.BigInteger

#: Names for constraints, so that Alembic can alter them on every database.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

#: States in which a lease still holds its slice.
LIVE_STATES = ("granted", "running", "stopping", "settled", "revoking")
_LIVE = "state IN ('granted', 'running', 'stopping', 'settled', 'revoking')"
#: As a condition on `Lease` that the index of live leases is used for: that needs the words
#: themselves, not parameters.
IS_LIVE = sa.text(f"lease.{_LIVE}")


class Base(MappedAsDataclass, DeclarativeBase):
    metadata = sa.MetaData(naming_convention=NAMING)


def _id() -> Mapped[int]:
    return mapped_column(BigId, primary_key=True, autoincrement=True, init=False)


class Node(Base, kw_only=True):
    """A machine with devices, as its daemon last described itself."""

    __tablename__ = "node"
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    engine: Mapped[str] = mapped_column(sa.String(16))
    boot_id: Mapped[str] = mapped_column(sa.String(64))
    simulated: Mapped[bool]
    driver_version: Mapped[str | None] = mapped_column(sa.String(64))
    gpu_problem: Mapped[str | None] = mapped_column(sa.Text)
    enforcement_ceiling: Mapped[int]
    #: Wall and boot clock of the node at its last listing: if they part, the wall clock jumped.
    seen_us: Mapped[int] = mapped_column(Big)
    boottime_us: Mapped[int] = mapped_column(Big)


class Device(Base, kw_only=True):
    """A GPU, a MIG instance, or (kind ``host``) a node's processors and RAM.

    ``version`` is raised by everything that changes what may be granted on it, in the same
    transaction: grant, release, state. For a MIG instance it is the parent GPU's version.
    """

    __tablename__ = "device"
    node_id: Mapped[str] = mapped_column(sa.ForeignKey("node.id"), primary_key=True)
    id: Mapped[str] = mapped_column(sa.String(96), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(8))
    position: Mapped[int]
    model: Mapped[str] = mapped_column(sa.String(128))
    memory_bytes: Mapped[int | None] = mapped_column(Big)
    cpu_milli: Mapped[int] = mapped_column(default=0)
    parent_id: Mapped[str | None] = mapped_column(sa.String(96), default=None)
    mig_profile: Mapped[str | None] = mapped_column(sa.String(32), default=None)
    mig_start: Mapped[int | None] = mapped_column(default=None)
    mig_size: Mapped[int | None] = mapped_column(default=None)
    mig_compute: Mapped[int | None] = mapped_column(default=None)
    mig_enabled: Mapped[bool] = mapped_column(default=False)
    simulated: Mapped[bool] = mapped_column(default=False)
    share_enforcement: Mapped[int] = mapped_column(default=0)
    memory_used_bytes: Mapped[int | None] = mapped_column(Big, default=None)
    utilisation_percent: Mapped[int | None] = mapped_column(default=None)
    state: Mapped[str] = mapped_column(sa.String(16), default="ok")
    state_reason: Mapped[str | None] = mapped_column(sa.Text, default=None)
    version: Mapped[int] = mapped_column(Big, default=0)
    seen_us: Mapped[int] = mapped_column(Big, default=0)
    __table_args__ = (
        sa.CheckConstraint("state IN ('ok', 'draining', 'sick', 'quarantined')", name="state"),
        sa.CheckConstraint("kind IN ('gpu', 'mig', 'host')", name="kind"),
    )


class Account(Base, kw_only=True):
    """Whom money belongs to. The id is ours and never reused; names only map to it."""

    __tablename__ = "account"
    id: Mapped[int] = _id()
    kind: Mapped[str] = mapped_column(sa.String(16))
    #: What it is called now, or was when it was closed; for messages only.
    label: Mapped[str] = mapped_column(sa.String(255))
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("account.id"), default=None)
    opened_us: Mapped[int] = mapped_column(Big)
    closed_us: Mapped[int | None] = mapped_column(Big, default=None)
    #: Raised by every edit of an administrator's: the optimistic check.
    version: Mapped[int] = mapped_column(default=1)
    #: A user's: when the hub first listed them, when the hub made them (if it says so), and since
    #: when it has them no more.
    hub_seen_us: Mapped[int | None] = mapped_column(Big, default=None)
    hub_created_us: Mapped[int | None] = mapped_column(Big, default=None)
    missing_since_us: Mapped[int | None] = mapped_column(Big, default=None)
    __table_args__ = (sa.CheckConstraint("kind IN ('user', 'group', 'platform')", name="kind"),)


class AccountName(Base, kw_only=True):
    """What an account is or was called: a hub user, a hub group, a platform purpose."""

    __tablename__ = "account_name"
    id: Mapped[int] = _id()
    source: Mapped[str] = mapped_column(sa.String(255))
    name: Mapped[str] = mapped_column(sa.String(255))
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"), index=True)
    valid_from_us: Mapped[int] = mapped_column(Big)
    valid_til_us: Mapped[int | None] = mapped_column(Big, default=None)
    __table_args__ = (
        sa.Index(
            "uq_account_name_current", "source", "name", unique=True,
            sqlite_where=sa.text("valid_til_us IS NULL"),
            postgresql_where=sa.text("valid_til_us IS NULL"),
        ),
    )  # fmt: skip


class Price(Base, kw_only=True):
    """What a slice type costs from a moment on; a change is a new row, never an edit."""

    __tablename__ = "price"
    id: Mapped[int] = _id()
    price_list: Mapped[str] = mapped_column(sa.String(64))
    slice_type: Mapped[str] = mapped_column(sa.String(64))
    rate_u_per_hour: Mapped[int] = mapped_column(Big)
    effective_from_us: Mapped[int] = mapped_column(Big)
    actor: Mapped[str] = mapped_column(sa.String(255))
    created_us: Mapped[int] = mapped_column(Big)
    __table_args__ = (
        sa.UniqueConstraint("price_list", "slice_type", "effective_from_us"),
        sa.CheckConstraint("rate_u_per_hour >= 0", name="rate"),
    )


class Policy(Base, kw_only=True):
    """One version of the limits of everybody, a user, or a group and each of its members.

    A change closes the row and writes the next version; a removed policy has no open row.
    """

    __tablename__ = "policy"
    id: Mapped[int] = _id()
    #: Whose: ``everyone``, ``user:<account>`` or ``group:<account>``; one version is current.
    subject: Mapped[str] = mapped_column(sa.String(64))
    account_id: Mapped[int | None] = mapped_column(sa.ForeignKey("account.id"), default=None)
    version: Mapped[int]
    #: A `gpuslice.quotas.documents.PolicyDocument` as JSON.
    document: Mapped[str] = mapped_column(sa.Text)
    valid_from_us: Mapped[int] = mapped_column(Big)
    valid_til_us: Mapped[int | None] = mapped_column(Big, default=None)
    actor: Mapped[str] = mapped_column(sa.String(255))
    reason: Mapped[str | None] = mapped_column(sa.String(500), default=None)
    __table_args__ = (
        sa.UniqueConstraint("subject", "version"),
        sa.Index(
            "uq_policy_current", "subject", unique=True,
            sqlite_where=sa.text("valid_til_us IS NULL"),
            postgresql_where=sa.text("valid_til_us IS NULL"),
        ),
    )  # fmt: skip


class AccountPeriod(Base, kw_only=True):
    """A projection: what an account has used and holds, by guarded updates only; see `verify`.

    ``period`` says what a row counts: ``life`` everything ever, with what is held and active now;
    ``life`` with a slice type only ``active``; ``bucket`` what began in one quarter of an hour,
    of which the limits of every period are summed. Every offset of a time zone is a multiple of
    a quarter of an hour, and segments are cut at the zones' midnights, so no sum is split.
    """

    __tablename__ = "account_period"
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"), primary_key=True)
    slice_type: Mapped[str] = mapped_column(sa.String(64), primary_key=True, default="")
    period: Mapped[str] = mapped_column(sa.String(16), primary_key=True, default="life")
    start_us: Mapped[int] = mapped_column(Big, primary_key=True, default=0)
    spent_u: Mapped[int] = mapped_column(Big, default=0)
    held_u: Mapped[int] = mapped_column(Big, default=0)
    active: Mapped[int] = mapped_column(Big, default=0)
    #: GPU time, microseconds of a whole GPU.
    gpu_us: Mapped[int] = mapped_column(Big, default=0)
    held_gpu_us: Mapped[int] = mapped_column(Big, default=0)
    __table_args__ = (
        sa.CheckConstraint("spent_u >= 0", name="spent"),
        sa.CheckConstraint("held_u >= 0", name="held"),
        sa.CheckConstraint("active >= 0", name="active"),
    )


class SliceTotal(Base, kw_only=True):
    """A projection: the time and money of one slice type ever, by who paid; see `verify`.

    ``what``: ``user``, ``writeoff`` or ``idle``, as segments are paid; ``refund`` and
    ``surcharge``, money that was corrected afterwards. It only grows, so it can be a counter in
    the metrics, and a look at it costs the same whatever the number of entries.
    """

    __tablename__ = "slice_total"
    slice_type: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    what: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    us: Mapped[int] = mapped_column(Big, default=0)
    amount_u: Mapped[int] = mapped_column(Big, default=0)
    __table_args__ = (
        sa.CheckConstraint(
            "what IN ('user', 'writeoff', 'idle', 'refund', 'surcharge')", name="what"
        ),
    )


class Lease(Base, kw_only=True):
    """One slice granted to one named server of one user, from grant to end."""

    __tablename__ = "lease"
    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    attempt: Mapped[str] = mapped_column(sa.String(64), unique=True)
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"), index=True)
    user_name: Mapped[str] = mapped_column(sa.String(255))
    server_name: Mapped[str] = mapped_column(sa.String(255))
    node_id: Mapped[str] = mapped_column(sa.ForeignKey("node.id"))
    slice_type: Mapped[str] = mapped_column(sa.String(64))
    title: Mapped[str] = mapped_column(sa.String(255))
    kind: Mapped[str] = mapped_column(sa.String(16))
    device_id: Mapped[str | None] = mapped_column(sa.String(96))
    device_model: Mapped[str | None] = mapped_column(sa.String(128))
    memory_bytes: Mapped[int | None] = mapped_column(Big)
    share_milli: Mapped[int | None]
    enforcement: Mapped[int]
    simulated: Mapped[bool]
    price_list: Mapped[str] = mapped_column(sa.String(64))
    state: Mapped[str] = mapped_column(sa.String(16))
    #: When the service (its clock) last changed the state: an older listing decides nothing.
    state_us: Mapped[int] = mapped_column(Big)
    granted_us: Mapped[int] = mapped_column(Big)
    #: A granted lease that has not started by then is taken back.
    start_before_us: Mapped[int] = mapped_column(Big)
    boot_id: Mapped[str | None] = mapped_column(sa.String(64), default=None)
    started_us: Mapped[int | None] = mapped_column(Big, default=None)
    #: Seen alive up to here (heartbeat), and paid by segments up to here.
    covered_us: Mapped[int | None] = mapped_column(Big, default=None)
    billed_us: Mapped[int | None] = mapped_column(Big, default=None)
    stop_requested_us: Mapped[int | None] = mapped_column(Big, default=None)
    stop_reason: Mapped[str | None] = mapped_column(sa.String(500), default=None)
    stop_actor: Mapped[str | None] = mapped_column(sa.String(255), default=None)
    keep_until_us: Mapped[int | None] = mapped_column(Big, default=None)
    finished_us: Mapped[int | None] = mapped_column(Big, default=None)
    finished_at_unknown: Mapped[bool] = mapped_column(default=False)
    exit_code: Mapped[int | None] = mapped_column(default=None)
    end_reason: Mapped[str | None] = mapped_column(sa.String(500), default=None)
    ended_us: Mapped[int | None] = mapped_column(Big, default=None)
    #: How much of a GPU it is, thousandths; GPU-hours count by it. 0: none.
    gpu_milli: Mapped[int] = mapped_column(default=0)
    #: The group that it is charged to, if any; see `LeaseAccount` for all that it counts for.
    group_id: Mapped[int | None] = mapped_column(Big, default=None)
    #: All groups that its user was in when it was granted, as JSON: what is reserved for one of
    #: them is taken by it.
    groups: Mapped[str] = mapped_column(sa.Text, default="[]")
    #: ``rolling`` or ``safe``, and how long the user said it will run.
    hold_kind: Mapped[str] = mapped_column(sa.String(8), default="rolling")
    declared_us: Mapped[int | None] = mapped_column(Big, default=None)
    #: The longest it may run from its start on.
    session_us: Mapped[int | None] = mapped_column(Big, default=None)
    #: An administrator's word that it is not stopped for a limit before then.
    guaranteed_til_us: Mapped[int | None] = mapped_column(Big, default=None)
    #: When a limit will end it, as last computed, and which.
    deadline_us: Mapped[int | None] = mapped_column(Big, default=None)
    deadline_reason: Mapped[str | None] = mapped_column(sa.String(500), default=None)
    #: How many minutes before it the user was last told.
    warned_min: Mapped[int | None] = mapped_column(default=None)
    #: From here on the platform pays: nobody was there to stop it when its limit was reached.
    absorbed_from_us: Mapped[int | None] = mapped_column(Big, default=None)
    #: Started by the queue: until its user opens it (by then at the latest), nobody's time.
    open_before_us: Mapped[int | None] = mapped_column(Big, default=None)
    opened_us: Mapped[int | None] = mapped_column(Big, default=None)
    __table_args__ = (
        sa.CheckConstraint(f"{_LIVE} OR state IN ('ended', 'cancelled')", name="state"),
        sa.CheckConstraint("billed_us IS NULL OR billed_us >= started_us", name="billed"),
        sa.Index(
            "uq_lease_live_server", "account_id", "server_name", unique=True,
            sqlite_where=sa.text(_LIVE), postgresql_where=sa.text(_LIVE),
        ),
        sa.Index("ix_lease_state", "state"),
        sa.Index("ix_lease_granted", "granted_us", "id"),
        sa.Index("ix_lease_user", "user_name", "granted_us", "id"),
    )  # fmt: skip


class LeaseAccount(Base, kw_only=True):
    """An account that a lease counts for: its user's (depth 0), its group's (1), those above."""

    __tablename__ = "lease_account"
    lease_id: Mapped[str] = mapped_column(sa.ForeignKey("lease.id"), primary_key=True)
    account_id: Mapped[int] = mapped_column(
        sa.ForeignKey("account.id"), primary_key=True, index=True
    )
    depth: Mapped[int]


class Claim(Base, kw_only=True):
    """The part of a device that a lease holds; kept with its end, so history can be checked."""

    __tablename__ = "claim"
    id: Mapped[int] = _id()
    lease_id: Mapped[str] = mapped_column(sa.ForeignKey("lease.id"))
    node_id: Mapped[str] = mapped_column(sa.String(64))
    device_id: Mapped[str] = mapped_column(sa.String(96))
    whole: Mapped[bool] = mapped_column(default=False)
    memory_bytes: Mapped[int] = mapped_column(Big, default=0)
    share_milli: Mapped[int] = mapped_column(default=0)
    mig_id: Mapped[str | None] = mapped_column(sa.String(96), default=None)
    mig_start: Mapped[int | None] = mapped_column(default=None)
    mig_size: Mapped[int | None] = mapped_column(default=None)
    cpu_milli: Mapped[int] = mapped_column(default=0)
    ram_bytes: Mapped[int] = mapped_column(Big, default=0)
    #: Versions of the device between which the claim held: a total order, unlike two clocks.
    taken_version: Mapped[int] = mapped_column(Big)
    released_version: Mapped[int | None] = mapped_column(Big, default=None)
    __table_args__ = (
        sa.UniqueConstraint("lease_id", "node_id", "device_id"),
        sa.ForeignKeyConstraint(["node_id", "device_id"], ["device.node_id", "device.id"]),
        sa.Index("ix_claim_device", "node_id", "device_id", "released_version"),
        # The live ones, few beside all there ever were: what every grant looks at.
        sa.Index(
            "ix_claim_live", "node_id", "device_id",
            sqlite_where=sa.text("released_version IS NULL"),
            postgresql_where=sa.text("released_version IS NULL"),
        ),
    )  # fmt: skip


class Hold(Base, kw_only=True):
    """What is reserved for a lease on one account; closed when the lease is settled."""

    __tablename__ = "hold"
    id: Mapped[int] = _id()
    lease_id: Mapped[str] = mapped_column(sa.ForeignKey("lease.id"))
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"))
    amount_u: Mapped[int] = mapped_column(Big)
    gpu_us: Mapped[int] = mapped_column(Big, default=0)
    state: Mapped[str] = mapped_column(sa.String(8), default="open")
    updated_us: Mapped[int] = mapped_column(Big)
    __table_args__ = (
        sa.UniqueConstraint("lease_id", "account_id"),
        sa.CheckConstraint("amount_u >= 0", name="amount"),
        sa.CheckConstraint("state IN ('open', 'closed')", name="state"),
    )


class Segment(Base, kw_only=True):
    """A closed interval of a lease's life, half open, at one price and in one period."""

    __tablename__ = "segment"
    id: Mapped[int] = _id()
    lease_id: Mapped[str] = mapped_column(sa.ForeignKey("lease.id"))
    from_us: Mapped[int] = mapped_column(Big)
    til_us: Mapped[int] = mapped_column(Big)
    price_id: Mapped[int] = mapped_column(sa.ForeignKey("price.id"))
    payer: Mapped[str] = mapped_column(sa.String(8))
    amount_u: Mapped[int] = mapped_column(Big)
    created_us: Mapped[int] = mapped_column(Big)
    __table_args__ = (
        sa.UniqueConstraint("lease_id", "from_us"),
        sa.CheckConstraint("til_us > from_us", name="order"),
        sa.CheckConstraint("amount_u >= 0", name="amount"),
        sa.CheckConstraint("payer IN ('user', 'writeoff')", name="payer"),
    )


class Entry(Base, kw_only=True):
    """An append-only transfer: ``amount_u`` from the debit account to the credit account."""

    __tablename__ = "entry"
    id: Mapped[int] = _id()
    idem_key: Mapped[str] = mapped_column(sa.String(128), unique=True)
    kind: Mapped[str] = mapped_column(sa.String(16))
    debit_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"))
    credit_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"))
    amount_u: Mapped[int] = mapped_column(Big)
    segment_id: Mapped[int | None] = mapped_column(sa.ForeignKey("segment.id"), default=None)
    leg: Mapped[int] = mapped_column(default=0)
    corrects_id: Mapped[int | None] = mapped_column(sa.ForeignKey("entry.id"), default=None)
    actor: Mapped[str] = mapped_column(sa.String(255))
    memo: Mapped[str] = mapped_column(sa.String(500), default="")
    created_us: Mapped[int] = mapped_column(Big)
    #: The credit that it granted, used, took back or returned to.
    grant_id: Mapped[int | None] = mapped_column(Big, default=None)
    __table_args__ = (
        sa.UniqueConstraint("segment_id", "leg"),
        sa.CheckConstraint("amount_u > 0", name="amount"),
        sa.CheckConstraint("debit_id <> credit_id", name="accounts"),
        # With the number: an account's newest entries are read from the end of its part.
        sa.Index("ix_entry_debit", "debit_id", "id"),
        sa.Index("ix_entry_credit", "credit_id", "id"),
        sa.Index(
            "ix_entry_corrects", "corrects_id",
            sqlite_where=sa.text("corrects_id IS NOT NULL"),
            postgresql_where=sa.text("corrects_id IS NOT NULL"),
        ),
    )  # fmt: skip


class CreditGrant(Base, kw_only=True):
    """Money given to an account in advance, used up by the entries that name it."""

    __tablename__ = "credit_grant"
    id: Mapped[int] = _id()
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"), index=True)
    amount_u: Mapped[int] = mapped_column(Big)
    #: A projection of the entries; `verify` rebuilds it.
    used_u: Mapped[int] = mapped_column(Big, default=0)
    #: Smaller is used first; then the one that expires sooner.
    priority: Mapped[int] = mapped_column(default=0)
    expires_us: Mapped[int | None] = mapped_column(Big, default=None)
    created_us: Mapped[int] = mapped_column(Big)
    __table_args__ = (
        sa.CheckConstraint("amount_u > 0", name="amount"),
        sa.CheckConstraint("used_u >= 0 AND used_u <= amount_u", name="used"),
    )


class Allowance(Base, kw_only=True):
    """More than a limit says, for a while: what an administrator added, with a reason."""

    __tablename__ = "allowance"
    id: Mapped[int] = _id()
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"), index=True)
    #: ``money`` in micro-units or ``gpu_hours`` in microseconds.
    kind: Mapped[str] = mapped_column(sa.String(16))
    #: Of the limit that it adds to, as policies write it: an account may have one a day and one a
    #: month, and each gets its own.
    period: Mapped[str] = mapped_column(sa.String(16))
    amount: Mapped[int] = mapped_column(Big)
    from_us: Mapped[int] = mapped_column(Big)
    til_us: Mapped[int] = mapped_column(Big)
    lease_id: Mapped[str | None] = mapped_column(sa.ForeignKey("lease.id"), default=None)
    actor: Mapped[str] = mapped_column(sa.String(255))
    reason: Mapped[str] = mapped_column(sa.String(500))
    created_us: Mapped[int] = mapped_column(Big)
    __table_args__ = (
        sa.CheckConstraint("kind IN ('money', 'gpu_hours')", name="kind"),
        sa.CheckConstraint("amount > 0", name="amount"),
        sa.CheckConstraint("til_us > from_us", name="order"),
    )


#: States in which a request still waits for its lease or its lease for its user.
WAITING_STATES = ("waiting", "offered", "starting")
_WAITING = "state IN ('waiting', 'offered', 'starting')"


class QueueRequest(Base, kw_only=True):
    """A place in the queue; becomes at most one lease at a time."""

    __tablename__ = "request"
    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"), index=True)
    user_name: Mapped[str] = mapped_column(sa.String(255))
    server_name: Mapped[str] = mapped_column(sa.String(255))
    slice_type: Mapped[str] = mapped_column(sa.String(64))
    #: The user's groups when last looked at, and what the server is to be started with: JSON.
    groups: Mapped[str] = mapped_column(sa.Text, default="[]")
    options: Mapped[str] = mapped_column(sa.Text, default="{}")
    auto_start: Mapped[bool] = mapped_column(default=False)
    declared_us: Mapped[int | None] = mapped_column(Big, default=None)
    state: Mapped[str] = mapped_column(sa.String(16), default="waiting")
    state_us: Mapped[int] = mapped_column(Big)
    reason: Mapped[str | None] = mapped_column(sa.String(500), default=None)
    lease_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("lease.id"), default=None, unique=True
    )
    offer_til_us: Mapped[int | None] = mapped_column(Big, default=None)
    version: Mapped[int] = mapped_column(default=1)
    created_us: Mapped[int] = mapped_column(Big)
    __table_args__ = (
        sa.CheckConstraint(
            f"{_WAITING} OR state IN ('fulfilled', 'left', 'expired', 'refused')", name="state"
        ),
        sa.Index(
            "uq_request_waiting", "account_id", "server_name", unique=True,
            sqlite_where=sa.text(_WAITING), postgresql_where=sa.text(_WAITING),
        ),
        sa.Index("ix_request_state", "state", "created_us"),
    )  # fmt: skip


class Reservation(Base, kw_only=True):
    """Slices set aside for a group, once or every week; local days and times in its time zone."""

    __tablename__ = "reservation"
    id: Mapped[int] = _id()
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"), index=True)
    title: Mapped[str] = mapped_column(sa.String(255))
    slice_type: Mapped[str] = mapped_column(sa.String(64))
    count: Mapped[int]
    timezone: Mapped[str] = mapped_column(sa.String(64))
    #: ISO dates and ``HH:MM``; a time til at or before the time from is on the next day.
    first_day: Mapped[str] = mapped_column(sa.String(10))
    last_day: Mapped[str] = mapped_column(sa.String(10))
    #: ``0`` Monday … ``6`` Sunday, as in ``13``; all seven: every day.
    weekdays: Mapped[str] = mapped_column(sa.String(7))
    from_time: Mapped[str] = mapped_column(sa.String(5))
    til_time: Mapped[str] = mapped_column(sa.String(5))
    #: How long before its start leases that stand in its way are told; None: they go on.
    notice_us: Mapped[int | None] = mapped_column(Big, default=None)
    version: Mapped[int] = mapped_column(default=1)
    actor: Mapped[str] = mapped_column(sa.String(255))
    reason: Mapped[str] = mapped_column(sa.String(500))
    created_us: Mapped[int] = mapped_column(Big)
    cancelled_us: Mapped[int | None] = mapped_column(Big, default=None)
    __table_args__ = (sa.CheckConstraint("count > 0", name="count"),)


class IdempotencyKey(Base, kw_only=True):
    """A write that was done, and its answer: the same key again changes nothing. Kept for ever."""

    __tablename__ = "idempotency_key"
    #: Who used it: two callers' keys are two keys.
    caller: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    #: SHA-256 of method, path and body: another request under the same key is refused.
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[int]
    answer: Mapped[str] = mapped_column(sa.Text)
    created_us: Mapped[int] = mapped_column(Big)


class Digest(Base, kw_only=True):
    """What was written until the end of a day as one signed hash, chained to the one before.

    It covers every entry after the last one of the digest before it, up to ``last_entry``.
    """

    __tablename__ = "digest"
    #: 1, 2, 3 …
    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    #: ISO date, UTC. A clock that was wrong may give two digests the same day.
    day: Mapped[str] = mapped_column(sa.String(10))
    first_entry: Mapped[int | None] = mapped_column(Big)
    last_entry: Mapped[int | None] = mapped_column(Big)
    entries: Mapped[int] = mapped_column(Big)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    previous: Mapped[str] = mapped_column(sa.String(64))
    key_id: Mapped[str] = mapped_column(sa.String(64))
    signature: Mapped[str] = mapped_column(sa.String(200))
    created_us: Mapped[int] = mapped_column(Big)


class NoticeRow(Base, kw_only=True):
    """Something a lease's user should know; written once per ``idem_key``."""

    __tablename__ = "notice"
    id: Mapped[int] = _id()
    idem_key: Mapped[str] = mapped_column(sa.String(128), unique=True)
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("account.id"), index=True)
    lease_id: Mapped[str | None] = mapped_column(sa.ForeignKey("lease.id"), default=None)
    kind: Mapped[str] = mapped_column(sa.String(32))
    severity: Mapped[str] = mapped_column(sa.String(8))
    message: Mapped[str] = mapped_column(sa.Text)
    created_us: Mapped[int] = mapped_column(Big)


class Audit(Base, kw_only=True):
    """Who did what, when and why, for everything that is not money."""

    __tablename__ = "audit"
    id: Mapped[int] = _id()
    at_us: Mapped[int] = mapped_column(Big)
    actor: Mapped[str] = mapped_column(sa.String(255))
    action: Mapped[str] = mapped_column(sa.String(64))
    subject: Mapped[str] = mapped_column(sa.String(255))
    before: Mapped[str | None] = mapped_column(sa.Text, default=None)
    after: Mapped[str | None] = mapped_column(sa.Text, default=None)
    reason: Mapped[str | None] = mapped_column(sa.String(500), default=None)


class Meter(Base, kw_only=True):
    """The one row that says which service process meters this ledger (its epoch)."""

    __tablename__ = "meter"
    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    epoch: Mapped[int] = mapped_column(Big)
    boot_id: Mapped[str] = mapped_column(sa.String(64))
    pid: Mapped[int]
    pid_start: Mapped[int] = mapped_column(Big)
    beat_us: Mapped[int] = mapped_column(Big)
    __table_args__ = (sa.CheckConstraint("id = 1", name="one"),)
