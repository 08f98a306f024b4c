"""One valid call of every route of the table, on a ledger with something of everything in it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from rest_devices import device_of, quarantine, version_of

from gpuslice import wire
from gpuslice.ledger.tables import Base
from gpuslice.service.routes import ROUTES, AnyRoute
from gpuslice.units import HOUR_US
from quotaworld import passes, spawn
from serviceledger import ServiceLedger


@dataclass(frozen=True)
class Things:
    """What is there, all of it ada's unless it says otherwise."""

    lease_id: str
    #: Granted and not started yet.
    granted_id: str
    request_id: str
    entry_id: int
    bobs_lease_id: str
    #: Of servers without a lease, which `add_strangers` puts up: one to adopt, one to end.
    stranger_ids: tuple[str, str] = ("5" * 32, "6" * 32)


#: A limit that nothing here reaches.
MONEY = [{"at_most": 9_999, "per": "month"}]
#: What two reservations say; they begin long after what the tests do.
RESERVED = {
    "slice": "quarter", "count": 2, "title": "a course", "timezone": "Europe/Berlin",
    "first_day": "2027-03-01", "last_day": "2027-07-31", "weekdays": ["tue"],
    "from_time": "10:00", "til_time": "12:00", "reason": "a test",
}  # fmt: skip


def furnish(world: ServiceLedger) -> Things:
    """Two users with leases and bills, a place in the queue, credit, policies, reservations."""
    root = world.config.operator_token
    base = "api/admin/policies"
    for path, document in (
        ("users/ada", {"each": {"slices": 5, "money": MONEY}}),
        ("groups/lab", {"each": {"priority": 3}, "total": {"slices": 9}}),
        # Two who have never started anything: one to be renamed, one to be closed.
        ("users/gus", {"each": {"slices": 1}}),
        ("users/hal", {"each": {"slices": 1}}),
    ):
        body = {"document": document, "version": None, "reason": "a test"}
        world.ask(root, "PUT", f"{base}/{path}", body)
    for _ in range(2):
        world.ask(root, "POST", "api/admin/reservations", RESERVED | {"group": "lab"})
    lease_id = spawn(world, "ada", "quarter", ["lab"], "one")
    bobs = spawn(world, "bob", "cpu", [])
    passes(world, 3 * HOUR_US, step_us=HOUR_US)
    granted_id = world.grant("ada", "cpu", "two").lease_id
    ada = world.reader("ada")
    waits = world.ask(ada, "POST", "api/queue", {"slice": "whole", "server": "three"})
    credit = {"whose": "user", "name": "ada", "amount_u": 5_000_000, "reason": "a test"}
    world.ask(root, "POST", "api/admin/credits", credit)
    paid = world.ask(ada, "GET", "api/entries")["entries"]
    usage = next(entry["entry_id"] for entry in paid if entry["kind"] == "usage")
    quarantine(world)
    return Things(lease_id, granted_id, waits["request_id"], usage, bobs)


def add_strangers(world: ServiceLedger, things: Things) -> None:
    """Servers that run without a lease, as after a restore. From the next comparison on nothing
    is granted beside them."""
    for user, lease_id in zip(("ivy", "jon"), things.stranger_ids, strict=True):
        world.node.slices[lease_id] = wire.PrepareSlice(
            lease_id=lease_id, user=user, server="", slice_type="cpu", kind=wire.SliceKind.CPU,
            device_uuid=None, memory_bytes=None, share_milli=None,
            enforcement=wire.Enforcement.EXCLUSIVE, cpu_milli=1000, ram_bytes=1 << 30,
        )  # fmt: skip
        world.node.run(world.node.create(lease_id), world.now)


def path_of(route: AnyRoute, things: Things, *, name: str = "ada") -> str:
    """The route's path with what is there in its braces."""
    to_adopt, to_end = things.stranger_ids
    lease_id = {
        "started": things.granted_id, "adopt_server": to_adopt, "end_server": to_end,
    }.get(route.name, things.lease_id)  # fmt: skip
    name = {"rename_user": "gus", "close_user": "hal"}.get(route.name, name)
    words = {
        "lease_id": lease_id, "request_id": things.request_id, "name": quote(name, safe=""),
        "number": "2" if route.name == "cancel_reservation" else "1",
    }  # fmt: skip
    if "/groups/" in route.path:
        words["name"] = "lab"
    return route.path.format_map(words | device_of(route))


def body_of(route: AnyRoute, world: ServiceLedger, things: Things) -> Any:
    """A body with which the route would change something; None: it has none."""
    if not route.has_body:
        return None
    why = {"reason": "a test"}
    # More money can only be given where some limit holds: the changed policy keeps ada's.
    policy = {"document": {"each": {"slices": 4, "money": MONEY}}, "version": 1, **why}
    return {
        "grant": {"attempt": uuid.uuid4().hex, "user": "eve", "slice": "cpu"},
        "broker_stop": {"actor": "spawner", **why},
        "broker_choices": {"user": "ada", "groups": ["lab"]},
        "drain": {"actor": "up", **why},
        "started": {"started_us": world.now, "boot_id": world.node.boot},
        "stop": why,
        "keep": {"lease_id": things.lease_id},
        "set_limit": {"scope": "default", "value": 3, "version": 1, **why},
        "admin_set_limit": {"scope": "default", "value": "3", "version": "1", **why},
        "admin_stop": why,
        "set_policy_of_everyone": policy,
        "set_policy_of_user": policy,
        "set_policy_of_group": policy,
        "remove_policy_of_everyone": {"version": 1, **why},
        "remove_policy_of_user": {"version": 1, **why},
        "remove_policy_of_group": {"version": 1, **why},
        "explain": {"user": "ada", "slice": "quarter", "groups": ["lab"]},
        "join_for": {"user": "ada", "slice": "half", "server": "four"},
        "join_queue": {"slice": "half", "server": "four"},
        "change_request": {"slice": "half", "version": 1},
        "remove_request": why,
        "preview_price": {"slice": "quarter", "rate_u_per_hour": 7, **why},
        "set_price": {"slice": "quarter", "rate_u_per_hour": 7, **why},
        "give_credit": {"whose": "user", "name": "ada", "amount_u": 7, **why},
        "grant_more": {"money_u": 7, "until_us": world.now + HOUR_US, **why},
        "refund_lease": {"amount_u": 1, **why},
        "clear_device": {"version": version_of(world, route), **why},
        "admin_clear_device": {"version": str(version_of(world, route)), **why},
        "correct": {"entry_id": things.entry_id, "kind": "refund", "amount_u": 1, **why},
        "close_missing_users": {"count": 1, **why},
        "rename_user": {"to": "august", "version": 1, **why},
        "close_user": {"version": 1, **why},
        "set_parent_of_group": {"parent": "faculty", "version": 1, **why},
        "import_people": {
            "rows": [{"user": "kim", "each": {"slices": 2}, "credit_u": 7}],
            "credit_name": "winter", **why,
        },
        "add_reservation": RESERVED | {"group": "lab"},
        "change_reservation": RESERVED | {"count": 3, "version": 1},
        "cancel_reservation": {"version": 1, **why},
        "adopt_server": why,
        "end_server": why,
        # The forms of pages, as a browser sends them.
        "change_from_page": {"auto_start": "yes", "version": "1"},
        "admin_set_policy": {
            "kind": "user", "name": "leo", "document": '{"each": {"slices": 4}}', **why,
        },
        "admin_remove_request": why,
        "admin_set_price": {"slice": "half", "price_list": "default", "rate": "0.5", **why},
        "admin_refund": {"amount": "0.000002", **why},
        "admin_credit": {"amount": "1", **why},
    }[route.name]  # fmt: skip


def query_of(route: AnyRoute) -> dict[str, str]:
    """The query that the route cannot do without."""
    return {
        "current": {"user": "ada", "server": "one"},
        "usage_of": {"whose": "user", "name": "ada"},
    }.get(route.name, {})


def facts(world: ServiceLedger) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables: equal before and after means that nothing was changed."""
    return world.database.read(
        lambda session: {
            name: [tuple(row) for row in session.execute(sa.select(table))]
            for name, table in Base.metadata.tables.items()
        }
    )


def the(name: str) -> AnyRoute:
    return next(route for route in ROUTES if route.name == name)
