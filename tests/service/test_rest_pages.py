"""Lists in pages: each says when there is more, and none repeats or loses a row that stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rest_calls import RESERVED, furnish

from gpuslice.units import HOUR_US, SECOND_US
from quotaworld import passes, spawn, stop_all
from serviceledger import ServiceLedger

Row = dict[str, Any]


def walk(
    world: ServiceLedger, token: str, path: str, rows: str, cursor: str,
    between: Callable[[], None] = lambda: None, **query: Any,
) -> Iterator[Row]:  # fmt: skip
    """All rows, two at a time; ``between`` is done before each page but the first."""
    at: Any = None
    while True:
        asked = query | ({} if at is None else {cursor: at})
        page = world.ask(token, "GET", path, query=asked | {"limit": 2})
        assert len(page[rows]) <= 2
        assert page["next"] is None or len(page[rows]) == 2
        yield from page[rows]
        at = page["next"]
        if at is None:
            return
        between()


def add_credit(world: ServiceLedger) -> None:
    body = {"whose": "user", "name": "ada", "amount_u": 7, "reason": "one more"}
    world.ask(world.config.operator_token, "POST", "api/admin/credits", body)


def add_policy(world: ServiceLedger) -> None:
    """Another user's, and a new version of every one that there is."""
    root = world.config.operator_token
    base = "api/admin/policies"
    known = world.ask(root, "GET", base, query={"limit": 1000})["policies"]
    for view in known:
        where = f"{view['kind']}s/{view['name']}" if view["name"] else "everyone"
        body = {
            "document": {"each": {"slices": 3 + view["version"]}}, "version": view["version"],
            "reason": "again",
        }  # fmt: skip
        world.ask(root, "PUT", f"{base}/{where}", body)
    body = {"document": {"each": {"slices": 1}}, "version": None, "reason": "new"}
    world.ask(root, "PUT", f"{base}/users/new-{len(known)}", body)


def add_request(world: ServiceLedger) -> None:
    """A place that is given up again: a request more in the list."""
    ada = world.reader("ada")
    world.now += SECOND_US
    made = world.ask(ada, "POST", "api/queue", {"slice": "mig", "server": "again"})
    world.ask(ada, "DELETE", f"api/queue/{made['request_id']}")


def add_lease(world: ServiceLedger) -> None:
    world.now += SECOND_US
    lease_id = spawn(world, "ada", "cpu", [], f"more-{world.now}")
    world.stop(lease_id)
    world.node.finish(world.node.servers[lease_id])
    passes(world, 20 * SECOND_US, step_us=10 * SECOND_US)


def add_bill(world: ServiceLedger) -> None:
    passes(world, HOUR_US, step_us=HOUR_US)


def add_reservation(world: ServiceLedger) -> None:
    body = RESERVED | {"group": "lab"}
    world.ask(world.config.operator_token, "POST", "api/admin/reservations", body)


#: Path, rows, cursor, what makes one row the same row, whether it is ada's own, what adds rows.
LISTS: dict[str, tuple[str, str, str, str, bool, Callable[[ServiceLedger], None]]] = {
    "credits": ("api/admin/credits", "credits", "before", "credit_id", False, add_credit),
    "entries": ("api/admin/entries", "entries", "before", "entry_id", False, add_bill),
    "own entries": ("api/entries", "entries", "before", "entry_id", True, add_bill),
    "policies": ("api/admin/policies", "policies", "after", "name", False, add_policy),
    "limits": ("api/admin/limits", "limits", "after", "name", False, add_policy),
    "versions": (
        "api/admin/policies/users/ada/history", "versions", "before", "version", False, add_policy,
    ),
    "own requests": ("api/queue", "requests", "before", "request_id", True, add_request),
    "own leases": ("api/leases", "leases", "before", "lease_id", True, add_lease),
    "all leases": ("api/admin/leases", "leases", "before", "lease_id", False, add_lease),
    "accounts": ("api/admin/accounts", "accounts", "after", "account_id", False, add_policy),
    "reservations": (
        "api/admin/reservations", "reservations", "before", "reservation_id", False,
        add_reservation,
    ),
    "audit": ("api/admin/audit", "rows", "before", "id", False, add_credit),
}  # fmt: skip


@pytest.mark.parametrize("which", LISTS)
def test_a_walk_meets_every_row_once_while_rows_are_added(
    ledger: ServiceLedger, which: str
) -> None:
    path, rows, cursor, identity, own, add = LISTS[which]
    furnish(ledger)
    for _ in range(3):
        add(ledger)
    token = ledger.reader("ada") if own else ledger.config.operator_token
    there = [row[identity] for row in walk(ledger, token, path, rows, cursor)]
    assert len(set(there)) == len(there) >= 4
    whole = ledger.ask(token, "GET", path, query={"limit": 200})
    assert [row[identity] for row in whole[rows]] == there
    assert whole["next"] is None

    # No end of additions would be an endless walk of what grows at its end, so there are two.
    additions = iter([add, add])

    def between() -> None:
        next(additions, lambda _world: None)(ledger)

    met = [row[identity] for row in walk(ledger, token, path, rows, cursor, between)]
    assert len(set(met)) == len(met)
    assert set(there) <= set(met)
    # What is left out besides is only what came after the walk had passed its place.
    kept = set(there)
    assert [one for one in met if one in kept] == there
    stop_all(ledger)
    assert ledger.problems() == []


def test_every_list_of_the_document_says_when_there_is_more(ledger: ServiceLedger) -> None:
    """A list in an answer is in pages, or it is all there is: those are named here, with why."""
    complete = {
        "offers": "the slice types",
        "broker_offers": "the slice types",
        "devices": "the devices",
        "prices": "changes by administrators, all of them",
        "all_prices": "the same",
        "whole_queue": "all who wait now; their order changes, so no cursor could be honest",
        "notices": "those after `since`, oldest first: ask again after the last until none come",
        "refund_lease": "what this refund wrote",
        "unaccounted": "the servers of the node that have no lease",
        "export_entries": "all of a span, streamed",
        "export_my_entries": "all of a span, streamed",
    }
    lists = set()
    document = ledger.ask(None, "GET", "api/openapi.json")
    schemas = document["components"]["schemas"]
    for item in document["paths"].values():
        for operation in item.values():
            done = next(v for k, v in operation["responses"].items() if k.startswith("2"))
            schema = done["content"].get("application/json", {}).get("schema", {})
            name = schema.get("$ref", "").rpartition("/")[2]
            fields = schemas.get(name, {}).get("properties", {})
            if schema.get("type") == "array":
                lists.add(operation["operationId"])
            if "limit" in {p["name"] for p in operation.get("parameters", [])}:
                assert "next" in fields, operation["operationId"]
    assert lists == {*complete}


def test_many_that_are_over_do_not_hide_one_that_waits(ledger: ServiceLedger) -> None:
    ada = ledger.reader("ada")
    first = ledger.ask(ada, "POST", "api/queue", {"slice": "whole", "server": "first"})
    for _ in range(25):
        add_request(ledger)
    live = ledger.ask(ada, "GET", "api/queue", query={"live": "true"})
    assert [one["request_id"] for one in live["requests"]] == [first["request_id"]]
    shown = ledger.do(ledger.live().queue.mine("ada"))
    assert first["request_id"] in [one.request_id for one in shown]


def test_a_made_up_cursor_is_refused(ledger: ServiceLedger) -> None:
    ada, root = ledger.reader("ada"), ledger.config.operator_token
    for token, path in ((ada, "api/queue"), (ada, "api/leases"), (root, "api/admin/leases")):
        for cursor in ("x", "1", "-1", "1-", "99999999999999999999-a", "1.5-a"):
            answer = ledger.call(token, "GET", path, query={"before": cursor})
            assert answer.status_code in (200, 400), (path, cursor, answer.text)
            if answer.status_code == 200:
                assert cursor == "1-"
    for path in ("api/admin/credits", "api/admin/entries", "api/admin/audit"):
        for cursor in ("0", "-1", "x", str(1 << 63)):
            assert ledger.call(root, "GET", path, query={"before": cursor}).status_code == 400
