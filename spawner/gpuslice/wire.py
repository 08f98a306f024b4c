"""The messages between spawner, service, node, supervisor and notebook, as frozen models.

Spawner, node and service know each other by this module only. Every body is validated once, at
the edge, against these models; an unknown field is refused. Money is micro-units, memory bytes,
time UTC microseconds, unless a name says otherwise.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpuslice.units import MAX_TIME_US, format_wait


class Wire(BaseModel):
    """Base of all messages: immutable, strict about unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- words ----------------------------------------------------------------------------------


class SliceKind(StrEnum):
    """What a slice type hands out: a whole GPU, a MIG instance, a capped share, or no GPU."""

    EXCLUSIVE = "exclusive"
    MIG = "mig"
    SHARED = "shared"
    CPU = "cpu"


class Enforcement(IntEnum):
    """How a slice's memory cap is really held, weakest first (facts: the enforcement ladder)."""

    ADVISORY = 0
    WATCHDOG = 1
    PRELOAD = 2
    CGROUP = 3
    MIG = 4
    EXCLUSIVE = 5

    @property
    def label(self) -> str:
        return self.name.lower()


class DeviceState(StrEnum):
    """Only an ``ok`` device is granted."""

    OK = "ok"
    DRAINING = "draining"
    SICK = "sick"
    QUARANTINED = "quarantined"


class LeaseState(StrEnum):
    """``granted → running → stopping → settled → ended``, or ``granted → revoking → cancelled``."""

    GRANTED = "granted"
    RUNNING = "running"
    STOPPING = "stopping"
    SETTLED = "settled"
    ENDED = "ended"
    REVOKING = "revoking"
    CANCELLED = "cancelled"


class ServerState(StrEnum):
    """What the engine says of one leased server."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


#: A lease id: a uuid4 in 32 hex digits. The pattern also keeps it safe as a file name.
LeaseId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
#: Names of slice types, as in ``quarter`` or ``1g.10gb``.
SliceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._+-]{0,62}$")]
UserName = Annotated[str, Field(min_length=1, max_length=255)]
#: JupyterHub's server names; the default server's is empty.
ServerName = Annotated[str, Field(max_length=255)]
Micros = Annotated[int, Field(ge=0, le=1 << 62)]
#: A moment that somebody names: one that a calendar knows.
Moment = Annotated[int, Field(ge=0, le=MAX_TIME_US)]
Money = Annotated[int, Field(ge=0, le=1 << 62)]
Bytes = Annotated[int, Field(ge=0, le=1 << 62)]
Reason = Annotated[str, Field(min_length=1, max_length=500)]


# --- node → service -------------------------------------------------------------------------


class DeviceReport(Wire):
    """One device as the node's NVML sees it now; ``None`` means *not available*, never zero."""

    uuid: Annotated[str, Field(min_length=1, max_length=96)]
    kind: Literal["gpu", "mig"]
    index: int
    model: str
    memory_bytes: Bytes | None
    #: Set on a MIG instance: its GPU's UUID, profile name (``1g.10gb``), memory slots, compute.
    parent_uuid: str | None = None
    mig_profile: str | None = None
    mig_start: int | None = None
    mig_size: int | None = None
    mig_compute: int | None = None
    #: Set on a GPU: MIG mode is on, so the GPU itself cannot be leased, only its instances.
    mig_enabled: bool = False
    simulated: bool = False
    healthy: bool = True
    health_reason: str | None = None
    memory_used_bytes: Bytes | None = None
    utilisation_percent: int | None = None
    #: The strongest cap a *share* of this device can have on this node with this engine.
    share_enforcement: Enforcement = Enforcement.ADVISORY


class HostReport(Wire):
    """What the machine itself has: logical processors in thousandths, RAM in bytes."""

    cpu_milli: int
    ram_bytes: Bytes


class Inventory(Wire):
    """All devices of a node. ``gpu_problem`` is one sentence when NVML does not answer."""

    node_id: str
    boot_id: str
    engine: Literal["local", "docker"]
    now_us: Micros
    boottime_us: Micros
    simulated: bool
    driver_version: str | None
    gpu_problem: str | None
    host: HostReport
    devices: list[DeviceReport]
    #: The engine's ceiling: with ``local`` nothing holds any cap, so every lease is advisory.
    enforcement_ceiling: Enforcement


class Use(Wire):
    """What one lease's processes use of their device now; ``None`` means *not available*.

    ``utilisation_percent`` is of the *slice*: 100 is all that was leased. ``reason`` says in one
    sentence why a number is missing.
    """

    sampled_us: Micros
    memory_used_bytes: Bytes | None = None
    utilisation_percent: int | None = None
    reason: str | None = None


class ServerReport(Wire):
    """One labelled server, exactly as the engine states it.

    ``alive_til_us`` is set while running: start plus the time that has really passed since
    (boot clock), so a stepping wall clock cannot lengthen a bill. ``finished_us`` is set when the
    end is known; an ``exited`` server without it lost its supervisor (``finished_at_unknown``).
    """

    lease_id: LeaseId
    state: ServerState
    user: str
    server: str
    boot_id: str
    started_us: Micros | None = None
    alive_til_us: Micros | None = None
    finished_us: Micros | None = None
    exit_code: int | None = None
    oom: bool = False
    message: str | None = None
    url: str | None = None
    #: The newest sample of what it uses; None before the first one and for CPU leases.
    use: Use | None = None
    #: What was prepared for it; a ledger that lost the lease makes it anew from this.
    piece: PrepareSlice | None = None


class Listing(Wire):
    """A complete, fresh list of the leased servers on a node, created ones included.

    A lease that is neither in ``servers`` nor in ``slices`` has nothing on this node.
    """

    node_id: str
    boot_id: str
    now_us: Micros
    boottime_us: Micros
    servers: list[ServerReport]
    #: Leases with a prepared (not yet fenced or released) slice.
    slices: list[LeaseId]


# --- service → node -------------------------------------------------------------------------


class PrepareSlice(Wire):
    """Make a granted lease's slice startable: from now until it is fenced, one start may succeed.

    Idempotent. ``device_uuid`` is None for a CPU lease.
    """

    lease_id: LeaseId
    user: UserName
    server: ServerName
    slice_type: SliceName
    kind: SliceKind
    device_uuid: str | None
    memory_bytes: Bytes | None
    share_milli: int | None
    enforcement: Enforcement
    #: What the host has set aside: thousandths of a core (0: no limit), and bytes of RAM.
    cpu_milli: Annotated[int, Field(ge=0)] = 0
    ram_bytes: Bytes


class ReleaseResult(Wire):
    """Whether the device is clean after a lease; if not, it is quarantined and ``reason`` shown."""

    clean: bool
    reason: str | None = None


class DeviceCheck(Wire):
    """A device that nobody holds, looked at. ``problem`` null: it is well, nothing runs on it."""

    problem: str | None


# --- spawner → node (local engine) ----------------------------------------------------------


class StartServer(Wire):
    """Start one notebook server in a prepared slice; refused if the slice is not prepared."""

    lease_id: LeaseId
    argv: Annotated[list[str], Field(min_length=1, max_length=200)]
    env: dict[str, str]
    cwd: str
    url: str


class StopServer(Wire):
    """SIGTERM, then SIGKILL after ``grace_s`` seconds. Returns at once; the list tells the end."""

    grace_s: Annotated[float, Field(ge=0, le=600)] = 10.0


# --- supervisor → service -------------------------------------------------------------------


class ServerStarted(Wire):
    """Asks to move a lease ``granted → running``; 409 means that the server must not start."""

    started_us: Micros
    boot_id: str


# --- spawner ↔ service ----------------------------------------------------------------------


class LeaseRequest(Wire):
    """Asks for one slice for one named server. The same ``attempt`` twice gets the same lease."""

    attempt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    user: UserName
    server: ServerName = ""
    slice: Annotated[str, Field(max_length=200)]
    groups: Annotated[list[str], Field(max_length=1000)] = []
    #: The group to be charged, if the user chose one, and how long the user needs the slice.
    group: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    declared_us: Annotated[int, Field(gt=0, le=1 << 50)] | None = None


class LeaseGrant(Wire):
    """A granted lease: what the spawner needs to start the server and to tell the user."""

    lease_id: LeaseId
    slice: SliceName
    title: str
    kind: SliceKind
    node_id: str
    device_uuid: str | None
    device_model: str | None
    memory_bytes: Bytes | None
    share_milli: int | None
    enforcement: Enforcement
    simulated: bool
    rate_u_per_hour: Money
    currency: str
    state: LeaseState
    start_before_us: Micros


class Refusal(Wire):
    """Why something was refused, in words and in a form that programs can act on."""

    reason: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    message: str
    limit: str | None = None
    retry_after_s: int | None = None
    alternatives: list[str] = []


class Offer(Wire):
    """One slice type as shown to a user: what it is, what it costs, how many are free now."""

    slice: SliceName
    title: str
    kind: SliceKind
    device_model: str | None
    memory_bytes: Bytes | None
    share_milli: int | None
    enforcement: Enforcement
    simulated: bool
    rate_u_per_hour: Money
    currency: str
    free: int
    total: int
    #: Why none can be had now (``None`` when ``free`` > 0).
    unavailable: str | None = None
    #: How many more would be free if nothing were reserved for others.
    reserved: int = 0
    #: Those of this type that are reserved next for others: how many, and from when on.
    reserved_next: int = 0
    reserved_next_us: Micros | None = None
    #: The same for people, and what is reserved for themselves.
    reserved_note: str | None = None


class ChoicesRequest(Wire):
    """Asks what a user may choose from on the spawn page of one server."""

    user: UserName
    groups: Annotated[list[str], Field(max_length=1000)] = []
    server: ServerName = ""


class SliceTerms(Wire):
    """What the user's limits say of one slice type now, and how many wait for one.

    ``refused``: why it cannot be had now; ``forbidden``: it never can, and waiting does not help.
    """

    slice: SliceName
    refused: str | None
    forbidden: bool
    waiting: Annotated[int, Field(ge=0)]


class Choices(Wire):
    """What a user may choose from now, and what is left to the user.

    ``gpu_problem`` is one sentence when the node's GPUs cannot be used.
    """

    offers: list[Offer]
    leases_held: int
    leases_limit: int | None
    gpu_problem: str | None
    #: One for each offer.
    terms: list[SliceTerms] = []
    #: What is left of every limit, a sentence each.
    limits: list[str] = []
    #: The user's groups that can be charged; with one or none there is nothing to choose.
    charges: list[str] = []
    #: The cost of a whole session is reserved, so its length has to be said.
    hours_needed: bool = False
    #: The longest session; None: any length.
    longest_us: Micros | None = None
    #: What this very server waits for, or what is reserved for it.
    request: RequestView | None = None


# --- the queue ------------------------------------------------------------------------------


class RequestView(Wire):
    """A place in the queue. ``position`` is null once its turn has come.

    ``start_by_us``: it starts by then at the latest; ``expected_us``: a guess. Both null: nobody
    can know.
    """

    request_id: LeaseId
    user: str
    server: str
    slice: SliceName
    auto_start: bool
    state: Literal["waiting", "offered", "starting", "fulfilled", "left", "expired", "refused"]
    position: int | None
    waiting: int
    start_by_us: Micros | None
    expected_us: Micros | None
    offer_til_us: Micros | None
    lease_id: LeaseId | None
    reason: str | None
    created_us: Micros
    version: int

    def outlook(self, now: int) -> str:
        """When its turn comes, in a sentence: a promise, a guess, or an honest nothing."""
        said = []
        if self.expected_us is not None:
            said.append(f"is expected in about {format_wait(self.expected_us - now)}")
        if self.start_by_us is not None:
            said.append(f"comes in {format_wait(self.start_by_us - now)} at the latest")
        if not said:
            return (
                "Nobody can know yet when your turn comes: those before you may stay as long as "
                "they like."
            )
        return f"Your turn {' and '.join(said)}."


#: What may be said of a start (`gpuslice.spawners.options` says what each means).
SPAWN_OPTIONS = ("slice", "image", "hours", "charge", "queue")


class JoinQueue(Wire):
    """Waits for a slice for one named server. ``options`` are what it is to be started with."""

    slice: SliceName
    server: ServerName = ""
    auto_start: bool = False
    options: dict[str, Annotated[str, Field(max_length=500)]] = Field({}, max_length=20)
    #: The group to be charged, and how long the user needs the slice.
    group: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    declared_us: Annotated[int, Field(gt=0, le=1 << 50)] | None = None


class JoinFor(JoinQueue):
    """What the spawner sends when nothing is free and its user chose to wait."""

    user: UserName
    groups: list[str] = Field([], max_length=1000)


class StopLease(Wire):
    """A stop: committed with its reason before anything is asked of hub or node."""

    reason: Reason
    actor: Annotated[str, Field(min_length=1, max_length=255)]


class LeaseView(Wire):
    """One lease as its user, its notebook or an administrator sees it."""

    lease_id: LeaseId
    user: str
    server: str
    slice: str
    title: str
    kind: SliceKind
    node_id: str
    device_uuid: str | None
    device_model: str | None
    memory_bytes: Bytes | None
    share_milli: int | None
    enforcement: Enforcement
    simulated: bool
    state: LeaseState
    granted_us: Micros
    started_us: Micros | None
    covered_us: Micros | None
    finished_us: Micros | None
    finished_at_unknown: bool
    stop_requested_us: Micros | None
    stop_reason: str | None
    end_reason: str | None
    exit_code: int | None
    #: When a limit will stop it, as last computed, and which.
    deadline_us: Micros | None = None
    deadline_reason: str | None = None
    rate_u_per_hour: Money
    #: What the user pays so far (up to ``covered_us``), and what the platform absorbs.
    cost_u: Money
    writeoff_u: Money
    currency: str
    #: Live use while it runs, as fresh as the last comparison with the node.
    use: Use | None = None


class BillLine(Wire):
    """One segment of a lease as its bill shows it: a time, a price, who pays, how much."""

    from_us: Micros
    til_us: Micros
    rate_u_per_hour: Money
    payer: Literal["user", "writeoff"]
    amount_u: Money
    #: The entry that paid it; None for a free one.
    entry_id: int | None


class Bill(Wire):
    """A lease with all its closed segments; what runs since the last one is in the lease's cost."""

    lease: LeaseView
    lines: list[BillLine]
    #: What went back later less what was charged in addition: so much less than the lease's cost
    #: is what its user pays.
    corrected_u: Annotated[int, Field(ge=-(1 << 62), le=1 << 62)]


class LimitView(Wire):
    """How many leases somebody may hold at a time; ``value`` None is *unlimited*.

    ``name`` is the user or the group (each member of it); None for everybody's default.
    ``version`` names this very setting: an edit of another one is refused.
    """

    scope: Literal["default", "user", "group_member"]
    name: str | None
    value: int | None
    version: int
    since_us: Micros
    actor: str


class SetLimit(Wire):
    """Changes a limit. ``version`` is the one that was read, None for a new limit."""

    scope: Literal["default", "user", "group_member"]
    name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    value: Annotated[int, Field(ge=0, le=1_000_000)] | None
    version: int | None
    reason: Reason


class AuditRow(Wire):
    """One administrative act: who, what, on what, when and why."""

    id: int
    at_us: Micros
    actor: str
    action: str
    subject: str
    before: str | None
    after: str | None
    reason: str | None


class Notice(Wire):
    """Something the service wants the user of a lease to know."""

    id: int
    lease_id: LeaseId | None
    kind: str
    severity: Literal["info", "warning", "error"]
    message: str
    created_us: Micros


class Me(Wire):
    """The caller's own state: who the service takes them for, leases, and the lease limit."""

    user: str
    #: The one server that a notebook's token speaks for; None for a browser.
    server: str | None
    leases: list[LeaseView]
    leases_limit: int | None
    currency: str
    simulated: bool
    now_us: Micros


class DeviceView(Wire):
    """One device as an administrator sees it: what it is, its state, who holds it."""

    node_id: str
    uuid: str
    kind: Literal["gpu", "mig", "host"]
    model: str
    memory_bytes: Bytes | None
    parent_uuid: str | None
    mig_profile: str | None
    simulated: bool
    state: DeviceState
    state_reason: str | None
    seen_us: Micros
    leases: list[LeaseId]
    memory_used_bytes: Bytes | None = None
    utilisation_percent: int | None = None
    #: Raised by everything that changes what may be granted on it (for an instance: on its GPU).
    version: int = 0


class ClearDevice(Wire):
    """Has a quarantined device granted again. ``version`` is the one that was read."""

    version: Annotated[int, Field(ge=0, le=1 << 62)]
    reason: Reason
