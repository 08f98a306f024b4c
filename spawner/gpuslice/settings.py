"""``gpuslice.toml`` read into typed, frozen settings; whatever is wrong in it is named and refused.

Every number becomes an integer of the unit that its field's type states (bytes, micro-units,
thousandths) right here, from the text in the file, so a price never passes through a float.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from decimal import Decimal, InvalidOperation
from enum import Enum
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self, get_args
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from gpuslice.units import MIB, UnitError, parse_memory, parse_money
from gpuslice.wire import Enforcement, SliceKind, SliceName

#: What an error names as the place when there is no file.
NO_FILE = "built-in settings"
#: A file longer than this is not a settings file.
MAX_FILE_BYTES = 1 << 20
#: ``GPUSLICE__NODE__ID`` in the environment is ``id`` of ``[node]`` and wins over the file.
VARIABLE_PREFIX = "GPUSLICE__"
_MAX_PROBLEMS = 8


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where (``slice[quarter].price``) and why, in words."""

    key: str
    reason: str


class SettingsError(ValueError):
    """The settings cannot be used. The text has one line per problem: file, key, reason."""

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        self.file = file
        self.problems = problems
        shown = [
            f"{file}: {p.key}: {p.reason}" if p.key else f"{file}: {p.reason}"
            for p in problems[:_MAX_PROBLEMS]
        ]
        if len(problems) > _MAX_PROBLEMS:
            shown.append(f"{file}: and {len(problems) - _MAX_PROBLEMS} more problems")
        super().__init__("\n".join(shown))

    @property
    def key(self) -> str:
        """The path of the first wrong key; empty if the file as a whole is wrong."""
        return self.problems[0].key

    @property
    def reason(self) -> str:
        """Why the first one is wrong."""
        return self.problems[0].reason


# --- from text to integers ------------------------------------------------------------------


class _TomlFloat(float):
    """A float that still knows how it was written: prices are parsed from that text."""

    text: str

    def __new__(cls, text: str) -> _TomlFloat:
        self = super().__new__(cls, text)
        self.text = text
        return self

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def _fail(reason: str, key: str = "") -> NoReturn:
    """Refuse with words of our own; ``key`` is added to the path of the model that refuses."""
    raise PydanticCustomError("settings", "{reason}", {"reason": reason, "key": key})


def _memory(value: object) -> int:
    if not isinstance(value, str | int):
        _fail(f"{value!r} is not a size of memory; write for example '10 GiB'")
    try:
        size = parse_memory(value)
    except UnitError as exc:
        _fail(str(exc))
    if size < MIB:
        _fail(f"{value!r} is less than 1 MiB; is the unit missing? Write for example '10 GiB'")
    return size


def _price(value: object) -> int:
    if not isinstance(value, str | int | float):
        _fail(f"{value!r} is not an amount of money")
    try:
        return parse_money(value)
    except UnitError as exc:
        _fail(str(exc))


def _decimal(value: object, what: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _fail(f"{value!r} is not {what}")
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        _fail(f"{value!r} is not {what}")
    if not number.is_finite():
        _fail(f"{value!r} is not a finite number")
    return number


def _cores(value: object) -> int:
    number = _decimal(value, "a number of cores; write for example 2 or 0.5")
    if not 0 <= number <= 4096:
        _fail(f"{value!r} is not between 0 and 4096 cores")
    if number * 1000 != int(number * 1000):
        _fail(f"{value!r} is finer than a thousandth of a core")
    return int(number * 1000)


def _share(value: object) -> int:
    what = "a share; write for example 0.25 or '1/4'"
    fraction = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", str(value))
    if fraction is not None:
        over, under = int(fraction[1]), int(fraction[2])
        if under == 0 or not 0 < over <= under:
            _fail(f"{value!r} is not more than 0 and at most 1")
        milli = over * 1000 // under
    else:
        number = _decimal(value, what)
        if not 0 < number <= 1:
            _fail(f"{value!r} is not more than 0 and at most 1")
        milli = int(number * 1000)
    if milli == 0:
        _fail(f"{value!r} is less than a thousandth")
    return milli


def _by_name(kind: type[Enum], names: Mapping[str, Enum], value: object) -> Enum:
    if isinstance(value, kind):
        return value
    found = names.get(value) if isinstance(value, str) else None
    if found is None:
        _fail(f"{value!r} is none of {', '.join(names)}{_did_you_mean(str(value), names)}")
    return found


def _enforcement(value: object) -> Enum:
    return _by_name(Enforcement, {level.label: level for level in Enforcement}, value)


def _kind(value: object) -> Enum:
    return _by_name(SliceKind, {kind.value: kind for kind in SliceKind}, value)


def _leases(value: object) -> object:
    return None if value == "unlimited" else value


def _timezone(value: object) -> object:
    # UTC needs no tzdata on the machine; every other zone does.
    if not isinstance(value, str) or value == "UTC":
        return value
    try:
        ZoneInfo(value)
    except (OSError, ValueError, KeyError):
        _fail(f"{value!r} is no time zone known to this machine; write for example 'Europe/Berlin'")
    return value


def _database_url(value: object) -> object:
    # The value may hold a password, so it is never repeated in an error.
    known = ("sqlite:///", "postgresql://", "postgresql+psycopg://")
    if isinstance(value, str) and value and not value.startswith(known):
        _fail(f"does not start with one of {', '.join(known)}")
    return value


#: Bytes, written as text with a unit (``"10 GiB"``) or as a whole number of bytes.
MemoryBytes = Annotated[int, BeforeValidator(_memory)]
#: Micro-units of the currency, written as ``"2.75"`` or ``2.75``.
PriceMicro = Annotated[int, BeforeValidator(_price)]
#: Thousandths of a core, written in cores: ``2`` or ``0.5``.
CpuMilli = Annotated[int, BeforeValidator(_cores)]
#: Thousandths of a GPU, written as ``0.25`` or ``"1/4"``.
ShareMilli = Annotated[int, BeforeValidator(_share)]
EnforcementName = Annotated[Enforcement, BeforeValidator(_enforcement)]
KindName = Annotated[SliceKind, BeforeValidator(_kind)]


def _seconds(default: float, limit: float, description: str) -> Any:
    return Field(
        default, gt=0, le=limit, description=f"{description} At most {limit:,.0f} seconds."
    )


def _text_default(default: str, description: str) -> Any:
    """A field whose default is written as in the file and validated like it."""
    return Field(default, description=description)


# --- the settings ---------------------------------------------------------------------------


class _Table(BaseModel):
    """Base of all tables: immutable, strict about types, unknown keys and NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


class DatabaseSettings(_Table):
    """Where the ledger lives."""

    url: Annotated[str, BeforeValidator(_database_url)] = Field(
        "",
        description="SQLAlchemy URL of a SQLite file (`sqlite:///...`) or of PostgreSQL "
        "(`postgresql://...`). Empty: a SQLite file in the platform's data folder.",
    )
    password_file: str = Field(
        "",
        pattern=r"^(/.*)?$",
        description="A private file with the password that the `url` of a PostgreSQL leaves out.",
    )

    @model_validator(mode="after")
    def _a_password_belongs_to_somebody(self) -> Self:
        if self.password_file and not self.url.startswith("postgresql"):
            _fail("does nothing without the url of a PostgreSQL; remove it", "password_file")
        return self


class ServiceSettings(_Table):
    """Where the gpuslice service listens."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to bind.")
    port: int = Field(8085, ge=1, le=65535, description="TCP port to bind.")
    url: str = Field(
        "",
        pattern=r"^(https?://[^\s/]+)?$",
        description="Scheme, host and port at which hub and node reach the service. Empty: "
        "`host` and `port`.",
    )
    public_prefix: str = Field(
        "/services/gpuslice/",
        pattern=r"^/([A-Za-z0-9._~%@-]+/)*$",
        description="Path under which browsers reach the service; begins and ends with `/`.",
    )

    @property
    def root(self) -> str:
        """Scheme, host and port at which the other parts reach the service."""
        if self.url:
            return self.url
        # An address that means "all" is no address to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.port}"

    @property
    def address(self) -> str:
        """Where the service listens, prefix included, not through the proxy."""
        return f"{self.root}{self.public_prefix}"


class HubSettings(_Table):
    """How the service reaches JupyterHub."""

    api_url: str = Field(
        "http://127.0.0.1:8081/hub/api",
        pattern=r"^https?://[^\s/]+(/\S*)?$",
        description="URL of the hub's REST API as the service sees it.",
    )


class NodeSettings(_Table):
    """The machine whose GPUs are leased."""

    id: str = Field(
        "local",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Name of this node in every table. Do not change it once leases exist.",
    )


class ImageSettings(_Table):
    """One `[[docker.image]]`: an image that notebook servers may be started from."""

    reference: str = Field(
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._/:-]{0,199}(@sha256:[0-9a-f]{64})?$",
        description="As in `docker pull`; with its digest nobody can put another image under it.",
    )
    title: str = Field(
        "", max_length=100, description="What users read. Empty: the reference itself."
    )


class DockerSettings(_Table):
    """The `docker` engine: what a notebook server's container may have, and where things are.

    Read by the node, which makes every container; paths are the host's.
    """

    socket: str = Field("/var/run/docker.sock", pattern=r"^/", description="The engine's socket.")
    image: tuple[ImageSettings, ...] = Field(
        (ImageSettings(reference="gpuslice/notebook:latest", title="Notebook"),),
        strict=False,
        min_length=1,
        max_length=50,
        description="The images that may be started; the first is chosen beforehand.",
    )
    user: str = Field(
        "1000:100",
        pattern=r"^[1-9][0-9]{0,9}:[1-9][0-9]{0,9}$",
        description="User and group id of every notebook server; never root.",
    )
    home: str = Field(
        "volume",
        pattern=r"^(volume|/[^:,]*)$",
        description="Where homes are: `volume` (one Docker volume per user), or a folder of the "
        "host, such as a mounted NFS path, with one folder per user.",
    )
    home_size: MemoryBytes | None = Field(
        None,
        description="Size limit of a home. It is enforced where the file system can (XFS with "
        "project quotas); elsewhere users are warned.",
    )
    shared: str | None = Field(
        None,
        pattern=r"^/[^:,]*$",
        description="A folder of the host that every server sees read-only as `/shared`.",
    )
    read_only: bool = Field(
        True, description="The image cannot be changed: only the home and `/tmp` are writable."
    )
    tmp: MemoryBytes = _text_default("2GiB", "Size limit of `/tmp`; it counts as RAM.")
    shm: MemoryBytes | None = Field(
        None,
        description="Size limit of `/dev/shm`, which data loaders use; it counts as RAM. Left "
        "out: half of the slice's RAM.",
    )
    pids: int = Field(4096, ge=64, le=1 << 22, description="Processes and threads of one server.")
    log_size: MemoryBytes = _text_default("10MiB", "Size of one log file of a server.")
    log_files: int = Field(3, ge=1, le=100, description="How many log files of a server are kept.")
    internet: bool = Field(
        True, description="Whether notebook servers reach anything beside the hub."
    )
    network_pool: str = Field(
        "10.213.0.0/16",
        pattern=r"^[0-9.]+/[0-9]{1,2}$",
        description="Addresses of the servers' networks: every lease has a network of its own "
        "with 8 of them.",
    )
    gates: tuple[str, ...] = Field(
        (),
        strict=False,
        # As many as there is room for in a network of 8 addresses, beside bridge and notebook.
        max_length=4,
        description="Containers that are connected to every lease's network, and nothing else "
        "is: the hub's and the proxy's. Empty where these run on the host.",
    )
    cdi_dir: str = Field(
        "/var/run/cdi", pattern=r"^/", description="Where the engine finds CDI devices."
    )
    host_dir: str = Field(
        "/var/lib/gpuslice/host",
        pattern=r"^/",
        description="A folder of the host for files that containers are given.",
    )
    host_root: str = Field(
        "/",
        pattern=r"^/",
        description="Where the node sees the host's root folder; `/proc/1/root` in a container "
        "that shares the host's processes.",
    )
    nvidia_ctk: tuple[str, ...] = Field(
        ("nvidia-ctk",),
        strict=False,
        min_length=1,
        max_length=20,
        description="The command of the NVIDIA container toolkit, which says what a container "
        "needs for a GPU.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        references = [image.reference for image in self.image]
        if len(set(references)) != len(references):
            _fail("the same image is listed twice", "image")
        try:
            pool = ip_network(self.network_pool)
        except ValueError:
            _fail(f"{self.network_pool!r} is no network; write for example '10.213.0.0/16'",
                  "network_pool")  # fmt: skip
        if pool.prefixlen > 24:
            _fail("is too small; use /24 or larger", "network_pool")
        return self


class LimitSettings(_Table):
    """Limits that hold for everybody."""

    leases_per_user: Annotated[int | None, BeforeValidator(_leases)] = Field(
        1,
        ge=1,
        le=1000,
        description='How many leases one user may have at the same time, or `"unlimited"`.',
    )


class TimingSettings(_Table):
    """How often things are looked at, and how long they may take. All in seconds."""

    reconcile_s: float = _seconds(5.0, 300, "Between two comparisons of leases with the node.")
    heartbeat_s: float = _seconds(10.0, 3600, "Between two advances of what is billed.")
    start_timeout_s: float = _seconds(
        90.0, 3600, "How long a granted lease waits for its server before it is taken back."
    )
    hold_horizon_s: float = _seconds(
        600.0, 86_400, "How far ahead money is held; at least twice `heartbeat_s`."
    )
    offer_s: float = _seconds(
        600.0, 86_400, "How long a slice is reserved for whoever's turn in the queue has come."
    )
    queue_patience_s: float = _seconds(
        1800.0, 604_800, "After how long nobody may pass a request for which no time is known."
    )
    first_open_s: float = _seconds(
        600.0,
        86_400,
        "How long a server that the queue started waits to be opened; until then "
        "its time is the platform's.",
    )
    reservation_lead_s: float = _seconds(
        7200.0,
        604_800,
        "How long before a reservation begins a slice that it needs goes only to servers that are "
        "certain to be over by then.",
    )
    limit_grace_s: float = _seconds(
        120.0,
        86_400,
        "How long a server goes on when a limit is found to end it without notice, "
        "as when it was lowered.",
    )
    unattended_grace_s: float = _seconds(
        900.0,
        86_400,
        "How long past its limit a server is its user's to pay while the platform "
        "was not there to stop it; what is later the platform pays.",
    )
    stop_grace_s: float = _seconds(10.0, 600, "Between SIGTERM and SIGKILL of a server.")
    node_stop_after_s: float = _seconds(
        10.0, 3600, "After how long the node stops a server that the hub was asked to stop."
    )
    node_timeout_s: float = _seconds(5.0, 60, "How long one call to the node may take.")
    keep_s: float = _seconds(3600.0, 2_592_000, "How long one `keep` request protects a lease.")
    user_gone_s: float = _seconds(
        86_400.0,
        31_536_000,
        "How long the hub has had a user no more when the user's account is closed.",
    )

    @model_validator(mode="after")
    def _hold_outlives_a_heartbeat(self) -> Self:
        if self.hold_horizon_s < 2 * self.heartbeat_s:
            _fail(
                f"{self.hold_horizon_s:g} is less than twice heartbeat_s ({self.heartbeat_s:g}): "
                "time would pass that no money is held for",
                "hold_horizon_s",
            )
        return self


class FleetSettings(_Table):
    """What of the hardware is leased."""

    minimum_enforcement: EnforcementName = Field(
        Enforcement.WATCHDOG,
        description="The weakest way of holding a share's memory cap with which shares of a real "
        "GPU are offered: " + ", ".join(f"`{e.label}`" for e in Enforcement) + ". Whole GPUs and "
        "MIG instances are offered whatever it says; so are shares of a simulated GPU.",
    )
    reserve_memory: MemoryBytes = _text_default(
        "512MiB",
        "GPU memory of each shared device that is never handed out, for what the "
        "driver keeps to itself. The caps on one device sum to at most its memory less this. "
        "A sharer's own CUDA context counts inside its cap.",
    )
    host_reserve_ram: MemoryBytes = _text_default(
        "1GiB", "RAM of each host that is never handed out, for the system itself."
    )


class SliceSettings(_Table):
    """One `[[slice]]`: a slice type on offer. If there is any, exactly these are offered."""

    name: SliceName = Field(description="Unique name, as in `quarter`; in bills, so keep it.")
    title: str = Field("", max_length=100, description="What users read. Empty: made from `kind`.")
    kind: KindName = Field(
        description="`exclusive` (a whole GPU), `mig` (a MIG instance), `shared` (a share with "
        "a memory cap) or `cpu` (no GPU)."
    )
    model: str | None = Field(
        None,
        min_length=1,
        max_length=96,
        description="Only on GPUs whose model contains this text, as in `H100`. Not for `cpu`.",
    )
    memory: MemoryBytes | None = Field(
        None, description="GPU memory cap of a `shared` slice, as in `'10 GiB'`."
    )
    share: ShareMilli | None = Field(
        None,
        description="Share of a GPU that a `shared` slice takes, as in `0.25` or `'1/4'`, kept "
        "in thousandths rounded down. Without `memory` also its share of the memory (less "
        "`fleet.reserve_memory`).",
    )
    mig_profile: str | None = Field(
        None,
        pattern=r"^[1-7]g\.[1-9][0-9]{0,3}gb(\+[a-z.]{1,16})?$",
        description="Profile of a `mig` slice, as in `1g.10gb`.",
    )
    cpu: CpuMilli = _text_default(
        "0", "Cores of the host that are set aside, as in `2` or `0.5`. 0: none set aside."
    )
    ram: MemoryBytes = _text_default("1GiB", "RAM of the host that is set aside.")
    price: PriceMicro | None = Field(
        None,
        description="Price per hour, exact to a millionth, as in `'2.75'`. Left out: the default "
        "price of the GPU's model times the part of it that is leased; 0 for `cpu`.",
    )
    minimum_enforcement: EnforcementName | None = Field(
        None,
        description="`fleet.minimum_enforcement` for this slice alone; only for `shared`.",
    )

    @model_validator(mode="after")
    def _kind_and_keys_agree(self) -> Self:
        allowed = _KEYS_OF_KIND[self.kind]
        for key in ("model", "memory", "share", "mig_profile", "minimum_enforcement"):
            if getattr(self, key) is not None and key not in allowed:
                _fail(f"does nothing on a slice of kind '{self.kind}'; remove it", key)
        if self.kind is SliceKind.MIG and self.mig_profile is None:
            _fail("is missing; a slice of kind 'mig' needs it, as in '1g.10gb'", "mig_profile")
        if self.kind is SliceKind.SHARED and self.memory is None and self.share is None:
            _fail("is missing; a slice of kind 'shared' needs 'memory' or 'share'", "memory")
        return self


_KEYS_OF_KIND: Mapping[SliceKind, frozenset[str]] = {
    SliceKind.EXCLUSIVE: frozenset({"model"}),
    SliceKind.MIG: frozenset({"model", "mig_profile"}),
    SliceKind.SHARED: frozenset({"model", "memory", "share", "minimum_enforcement"}),
    SliceKind.CPU: frozenset(),
}


class Settings(_Table):
    """All of `gpuslice.toml`."""

    currency: str = Field(
        "EUR",
        pattern=r"^[A-Z]{3}$",
        description="The one currency of the platform, three capital letters.",
    )
    timezone: Annotated[str, BeforeValidator(_timezone)] = Field(
        "UTC", description="Time zone in which a billing day and month begin, an IANA name."
    )
    database: DatabaseSettings = DatabaseSettings()
    service: ServiceSettings = ServiceSettings()
    hub: HubSettings = HubSettings()
    node: NodeSettings = NodeSettings()
    limits: LimitSettings = LimitSettings()
    timing: TimingSettings = TimingSettings()
    fleet: FleetSettings = FleetSettings()
    docker: DockerSettings = DockerSettings()
    slice: tuple[SliceSettings, ...] = Field((), strict=False, max_length=200)

    _source: str = PrivateAttr(NO_FILE)

    @property
    def source(self) -> str:
        """The file that these came from, for errors found later; see :data:`NO_FILE`."""
        return self._source

    @property
    def zone(self) -> tzinfo:
        """The billing time zone; ``UTC`` works without tzdata on the machine."""
        return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        seen: dict[str, int] = {}
        for number, entry in enumerate(self.slice, start=1):
            first = seen.setdefault(entry.name, number)
            if first != number:
                _fail(
                    f"the name is used twice, by [[slice]] number {first} and number {number}",
                    f"slice[{entry.name}].name",
                )
        return self

    def error(self, key: str, reason: str) -> SettingsError:
        """An error about a key that is well formed but does not fit the hardware."""
        return SettingsError(self.source, (Problem(key, reason),))


def load_settings(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read ``path`` (``None``: the defaults), and lay the environment's variables over it.

    Args:
        path: ``gpuslice.toml``.
        overrides: Nested like the file; they win over file and environment.

    Raises:
        SettingsError: the file cannot be read, is no TOML, or says something that is not allowed.
    """
    file = NO_FILE if path is None else str(path)
    given = {} if path is None else _read(path)
    variables = environment_settings(os.environ)
    data = _merged(_merged(given, variables), overrides or {})
    try:
        settings = Settings.model_validate(data)
    except ValidationError as exc:
        problems = tuple(
            _problem(error, data, variables) for error in exc.errors(include_url=False)
        )
        raise SettingsError(file, problems) from None
    settings._source = file
    return settings


def environment_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings among these variables, nested like the file.

    A value is written as in the file; a text may go without its quotes unless it would be read as
    something else. An empty variable is none: compose files pass those on.
    """
    found: dict[str, Any] = {}
    for name, text in sorted(environment.items()):
        if name.startswith(VARIABLE_PREFIX) and text:
            keys = name.removeprefix(VARIABLE_PREFIX).lower().split("__")
            value: Any = _written(text)
            for key in reversed(keys):
                value = {key: value}
            found = _merged(found, value)
    return found


def _written(text: str) -> Any:
    """A value as it stands after ``key =`` in the file, or else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}", parse_float=_TomlFloat)
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    # Not of several lines: that would be keys of its own.
    return parsed["value"] if len(parsed) == 1 and "\n" not in text else text


def settings_reference() -> str:
    """All settings as markdown, one table per TOML table, made from the models above."""
    lines = ["# gpuslice.toml", "", "| key | default | meaning |", "|---|---|---|"]
    tables: list[tuple[str, type[_Table]]] = []
    for name, field in Settings.model_fields.items():
        table = _table_of(field)
        if table is None:
            lines.append(_reference_row(name, field))
        else:
            heading = "[[slice]]" if name == "slice" else f"[{name}]"
            tables.append((heading, table))
            tables += [
                (f"[[{name}.{key}]]", inner)
                for key, nested in table.model_fields.items()
                if (inner := _table_of(nested)) is not None
            ]
    for heading, table in tables:
        lines += ["", f"## {heading}", "", table.__doc__ or "", ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        lines += [_reference_row(name, field) for name, field in table.model_fields.items()]
    return "\n".join(lines) + "\n"


# --- helpers --------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    file = str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise SettingsError(file, (Problem("", exc.strerror or str(exc)),)) from None
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsError(file, (Problem("", "larger than 1 MiB"),))
    try:
        return tomllib.loads(raw.decode("utf-8"), parse_float=_TomlFloat)
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise SettingsError(file, (Problem("", f"line {line} is not UTF-8 text"),)) from None
    except tomllib.TOMLDecodeError as exc:
        last = raw.count(b"\n") + 1
        reason = str(exc).replace("at end of document", f"at line {last}, the last")
        raise SettingsError(file, (Problem("", f"not valid TOML: {reason}"),)) from None
    except RecursionError:
        raise SettingsError(file, (Problem("", "not valid TOML: nested too deeply"),)) from None


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _problem(error: ErrorDetails, data: Mapping[str, Any], variables: Mapping[str, Any]) -> Problem:
    """One of pydantic's errors in our words."""
    context = error.get("ctx", {})
    loc = [*error["loc"], *([context["key"]] if context.get("key") else [])]
    key = _key_path(loc, data) + _variable(loc, variables)
    match error["type"]:
        case "extra_forbidden":
            return Problem(key, "unknown key" + _suggestion(loc))
        case "missing":
            return Problem(key, "is missing")
        case "settings":
            return Problem(key, str(context["reason"]))
        case "model_type" | "tuple_type" | "list_type":
            heading = f"[[{loc[0]}]]" if loc[0] == "slice" else f"[{loc[0]}]"
            return Problem(key, f"is a table; write it as {heading}")
    message = error["msg"].replace("Input should", "should")
    got = "" if loc[0] == "database" else f", not {_shown(error['input'])}"
    return Problem(key, message + got)


def _variable(loc: list[int | str], variables: Mapping[str, Any]) -> str:
    """Which variable said this, if one did: looking for it in the file would be in vain."""
    names: list[str] = []
    there: Any = variables
    for part in loc:
        if not isinstance(there, Mapping) or part not in there:
            break
        names.append(str(part).upper())
        there = there[part]
    if not names or isinstance(there, Mapping):
        return ""
    return f" ({VARIABLE_PREFIX}{_shown_key('__'.join(names))})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _key_path(loc: list[int | str], data: Mapping[str, Any]) -> str:
    """``("slice", 1, "price")`` as ``slice[quarter].price``, or ``slice[#2]`` without a name."""
    if len(loc) > 1 and loc[0] == "slice" and isinstance(loc[1], int):
        entry = data["slice"][loc[1]]
        name = entry.get("name") if isinstance(entry, Mapping) else None
        label = name if isinstance(name, str) and _is_slice_name(name) else f"#{loc[1] + 1}"
        return ".".join([f"slice[{label}]", *map(_shown_key, loc[2:])])
    return ".".join(map(_shown_key, loc))


def _shown_key(key: int | str) -> str:
    text = str(key)
    return text if re.fullmatch(r"[A-Za-z0-9_.\[\]+-]{1,80}", text) else _shown(text)


def _is_slice_name(name: str) -> bool:
    try:
        TypeAdapter(SliceName).validate_python(name)
    except ValidationError:
        return False
    return True


def _suggestion(loc: list[int | str]) -> str:
    """A near key of the same table, or the table in which the key exists."""
    wrong = str(loc[-1])
    table: type[_Table] | None = Settings
    for part in loc[:-1]:
        if isinstance(part, str) and table is not None and part in table.model_fields:
            table = _table_of(table.model_fields[part])
    fields = table.model_fields if table is not None else {}
    near = _did_you_mean(wrong, fields)
    if near:
        return near
    elsewhere = [
        f"[{name}] {wrong}" for name, sub in _tables() if sub is not table and _has(sub, wrong)
    ]
    return f"; did you mean {elsewhere[0]}?" if elsewhere else f"; known are {', '.join(fields)}"


def _has(table: type[_Table], key: str) -> bool:
    return key in table.model_fields


def _did_you_mean(wrong: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def _tables() -> Iterator[tuple[str, type[_Table]]]:
    for name, field in Settings.model_fields.items():
        table = _table_of(field)
        if table is not None:
            yield name, table


def _table_of(field: FieldInfo) -> type[_Table] | None:
    """The model behind a field that is a TOML table or an array of them."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, _Table):
            return candidate
    return None


def _reference_row(name: str, field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif field.default is None:
        default = "none"
    elif isinstance(field.default, Enforcement):
        default = f'`"{field.default.label}"`'
    elif field.annotation is not None and _table_of(field) is not None:
        default = "see below"
    else:
        default = f"`{json.dumps(field.default)}`"
    return f"| `{name}` | {default} | {(field.description or '').replace('|', '/')} |"


__all__ = [
    "NO_FILE",
    "DatabaseSettings",
    "DockerSettings",
    "FleetSettings",
    "HubSettings",
    "ImageSettings",
    "LimitSettings",
    "NodeSettings",
    "Problem",
    "ServiceSettings",
    "Settings",
    "SettingsError",
    "SliceSettings",
    "TimingSettings",
    "environment_settings",
    "load_settings",
    "settings_reference",
]
