"""The administrator's pages: what they show, as plain values that are ready to print."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gpuslice import wire
from gpuslice.quotas.policytext import document_lines
from gpuslice.service import models, text
from gpuslice.service.pages import Page
from gpuslice.service.platform import Platform
from gpuslice.wire import Wire

T = TypeVar("T")

#: Rows on one page of a table that is sorted here.
PAGE_SIZE = 50

#: Column heads of the live leases with the key that they sort by.
_COLUMNS: tuple[tuple[str, models.LeaseSort | None], ...] = (
    ("User", "user"),
    ("Slice", "slice"),
    ("Device", "device"),
    ("Since", "since"),
    ("Cost", "cost"),
    ("Use", "use"),
    ("State", None),
)
_SORT: dict[models.LeaseSort, tuple[Callable[[wire.LeaseView], Any], bool]] = {
    "since": (lambda lease: lease.granted_us, True),
    "user": (lambda lease: (lease.user.casefold(), lease.user, lease.server), False),
    "slice": (lambda lease: (lease.title, lease.slice), False),
    "device": (lambda lease: (lease.device_model or "", lease.device_uuid or ""), False),
    "cost": (lambda lease: lease.cost_u, True),
    "use": (lambda lease: (lease.use and lease.use.memory_used_bytes) or -1, True),
}
_WHOM = {"default": "Everybody", "group_member": "Each member of group", "user": "User"}
_ACTIONS = {
    "lease.stop": "stopped a lease",
    "quota.set": "set a limit",
    "device.state": "changed a device",
    "policy.set": "set a policy",
    "policy.remove": "removed a policy",
    "price.set": "announced a price",
    "credit.give": "gave credit",
    "lease.grant-more": "let a lease go on",
    "lease.refund": "gave money back for a lease",
    "entry.refund": "gave money back",
    "entry.surcharge": "charged in addition",
    "queue.leave": "took a request out of the queue",
}


@dataclass(frozen=True)
class Shown(Generic[T]):
    """One page of a table and where its neighbours are (None: there is none)."""

    rows: list[T]
    total: int
    page: int
    earlier: int | None
    later: int | None


@dataclass(frozen=True)
class LeaseRow:
    lease_id: str
    user: str
    server: str
    title: str
    simulated: bool
    device: str
    node: str
    since: str
    cost: str
    memory: str
    utilisation: str
    why_no_use: str
    state: str
    stop_reason: str
    stoppable: bool


@dataclass(frozen=True)
class DeviceRow:
    model: str
    uuid: str
    node: str
    memory: str
    simulated: bool
    state: str
    reason: str
    well: bool
    use: str
    #: (lease id, who holds it)
    holders: list[tuple[str, str]]
    #: Quarantined, so somebody has to look at it; and the version for whoever did.
    clearable: bool
    version: int


@dataclass(frozen=True)
class LimitRow:
    scope: str
    name: str
    whom: str
    shown: str
    value: str
    unlimited: bool
    version: int
    since: str
    actor: str


@dataclass(frozen=True)
class AuditLine:
    when: str
    actor: str
    action: str
    subject: str
    lease_id: str
    change: str
    reason: str


def overview_page(
    leases: list[wire.LeaseView],
    devices: list[wire.DeviceView],
    platform: Platform,
    query: models.AdminQuery,
    *,
    more: bool,
    may_change: bool,
) -> Page:
    """Live leases and devices. ``more``: there are live leases beyond those given."""
    wanted = [lease for lease in leases if query.user in (None, lease.user)]
    key, reverse = _SORT[query.sort]
    shown = cut(sorted(wanted, key=key, reverse=reverse), query.page)
    return Page(
        "admin.html",
        "GPU admin",
        _common("overview", platform, may_change)
        | {
            "columns": _COLUMNS,
            "query": query,
            "leases": Shown(
                [lease_row(lease) for lease in shown.rows],
                shown.total,
                shown.page,
                shown.earlier,
                shown.later,
            ),
            "more": more,
            "devices": [device_row(device, leases) for device in sorted(devices, key=_place)],
            "link": lambda **change: text.query(**(_without_defaults(query) | change)),
        },
        script="admin.js",
    )


def limits_page(
    limits: list[wire.LimitView],
    following: int | None,
    platform: Platform,
    query: models.LimitsQuery,
    *,
    may_change: bool,
) -> Page:
    """One page of limits. ``following``: where the next one begins; None: there is no more."""
    return Page(
        "limits.html",
        "Limits",
        _common("limits", platform, may_change)
        | {
            "limits": [limit_row(limit) for limit in limits],
            **text.walked(_without_defaults(query), following),
        },
        script="admin.js",
    )


def audit_page(
    rows: list[wire.AuditRow], following: int | None, platform: Platform, *, may_change: bool
) -> Page:
    """Administrative acts, newest first."""
    return Page(
        "audit.html",
        "Audit",
        _common("audit", platform, may_change)
        | {"rows": [audit_line(row) for row in rows], "following": following},
        script="admin.js",
    )


def _common(tab: str, platform: Platform, may_change: bool) -> dict[str, object]:
    return {"tab": tab, "platform": platform, "may_change": may_change}


def _without_defaults(query: Wire) -> dict[str, object]:
    return dict(query.model_dump(exclude_defaults=True))


def cut(rows: Sequence[T], page: int) -> Shown[T]:
    """One page of rows; one that is too high shows the last."""
    last = max(1, -(-len(rows) // PAGE_SIZE))
    page = min(page, last)
    start = (page - 1) * PAGE_SIZE
    return Shown(
        rows=list(rows[start : start + PAGE_SIZE]),
        total=len(rows),
        page=page,
        earlier=page - 1 if page > 1 else None,
        later=page + 1 if page < last else None,
    )


def lease_row(lease: wire.LeaseView) -> LeaseRow:
    return LeaseRow(
        lease_id=lease.lease_id,
        user=lease.user,
        server=text.server_name(lease),
        title=lease.title,
        simulated=lease.simulated,
        device=lease.device_model or "no GPU",
        node=lease.node_id,
        since=text.moment(lease.started_us or lease.granted_us),
        cost=text.money(lease.cost_u, lease.currency),
        memory=_of(lease),
        utilisation="" if lease.device_uuid is None else text.utilisation(lease.use),
        why_no_use=text.why_no_use(lease),
        state=text.STATES[lease.state],
        stop_reason=lease.stop_reason or "",
        stoppable=text.stoppable(lease),
    )


def _of(lease: wire.LeaseView) -> str:
    if lease.device_uuid is None:
        return "no GPU"
    used = text.memory_in_use(lease.use)
    return used if lease.memory_bytes is None else f"{used} of {text.memory(lease.memory_bytes)}"


def _place(device: wire.DeviceView) -> tuple[str, bool, str, bool, str]:
    """Each MIG instance below its GPU, the machine itself last."""
    gpu = device.parent_uuid or device.uuid
    return (device.node_id, device.kind == "host", gpu, device.kind == "mig", device.uuid)


def device_row(device: wire.DeviceView, leases: list[wire.LeaseView]) -> DeviceRow:
    names = {lease.lease_id: f"{lease.user}, {text.server_name(lease)}" for lease in leases}
    model = device.model
    if device.mig_profile and device.mig_profile not in model:
        model = f"{model} ({device.mig_profile})"
    return DeviceRow(
        model="This machine, without GPU" if device.kind == "host" else model,
        uuid=device.uuid,
        node=device.node_id,
        memory=text.memory(device.memory_bytes),
        simulated=device.simulated,
        state=text.DEVICE_STATES[device.state],
        reason=device.state_reason or "",
        well=device.state is wire.DeviceState.OK,
        use=_device_use(device),
        holders=[(lease, names.get(lease, f"lease {lease[:8]}")) for lease in device.leases],
        clearable=device.state is wire.DeviceState.QUARANTINED,
        version=device.version,
    )


def _device_use(device: wire.DeviceView) -> str:
    if device.kind == "host":
        return ""
    used = text.memory(device.memory_used_bytes) or "memory not available"
    percent = device.utilisation_percent
    return f"{used}, {'utilisation not available' if percent is None else f'{percent} %'}"


def limit_row(limit: wire.LimitView) -> LimitRow:
    return LimitRow(
        scope=limit.scope,
        name=limit.name or "",
        whom=_WHOM[limit.scope],
        shown="unlimited" if limit.value is None else str(limit.value),
        value="" if limit.value is None else str(limit.value),
        unlimited=limit.value is None,
        version=limit.version,
        since=text.moment(limit.since_us),
        actor=limit.actor,
    )


def audit_line(row: wire.AuditRow) -> AuditLine:
    return AuditLine(
        when=text.moment(row.at_us),
        actor=row.actor,
        action=_ACTIONS.get(row.action, row.action),
        subject=_limited(row.subject) if row.action == "quota.set" else row.subject,
        lease_id=row.subject if row.action.startswith("lease.") else "",
        change=_change(row),
        reason=row.reason or "",
    )


def _change(row: wire.AuditRow) -> str:
    if row.action.startswith("policy."):
        return f"{_policy(row.before)} → {_policy(row.after)}"
    if row.after is None:
        return ""
    return f"{_told(row.before) or 'nothing'} → {_told(row.after)}"


def _policy(document: str | None) -> str:
    """A policy on one line, in the words of its own page."""
    lines = document_lines(json.loads(document)) if document is not None else ()
    return "; ".join(lines) or "nothing"


def _told(value: str | None) -> str:
    """What the record keeps as JSON, in words; a limit of null is none."""
    return {None: "", "null": "unlimited"}.get(value, (value or "").strip('"'))


def _limited(slot: str) -> str:
    """Whom a limit is for; the record names an account by its number, which is never reused."""
    scope, _, rest = slot.partition("/")
    account = rest.partition("/")[0]
    whom = _WHOM.get(scope, scope)
    return f"{whom}, account {account}" if account else whom
