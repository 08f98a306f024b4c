"""The running service against its own OpenAPI document, by schemathesis, as every kind of caller.

No answer but those that the document names for an operation, each of the form that it says, and
never a 500. Bodies, paths and queries come from the document, good ones and bad ones; to get
behind the first look-up, what is there is put into them. ``--hypothesis-profile`` is of no use
here: set ``GPUSLICE_REST_EXAMPLES`` for a longer search than the one of every run.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from rest_calls import Things, add_strangers, furnish
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from gpuslice.service.routes import ROUTES
from serviceledger import FETCH, ServiceLedger

#: Examples for each operation that the caller may use; others are turned away and need few.
EXAMPLES = int(os.environ.get("GPUSLICE_REST_EXAMPLES", "5"))
TURNED_AWAY = 1
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]

Role = Callable[[ServiceLedger], dict[str, Any]]


def _token(make: Callable[[ServiceLedger], str]) -> Role:
    return lambda world: {"headers": {"Authorization": f"token {make(world)}"}}


def _browser(name: str, *scopes: str) -> Role:
    def make(world: ServiceLedger) -> dict[str, Any]:
        browser = world.browser(name, *scopes)
        cookies = {cookie.name: cookie.value for cookie in browser.cookies.jar}
        # The hub's token of a page is for one browser, known by what it calls itself.
        same = {"User-Agent": browser.headers["User-Agent"], "X-XSRFToken": world.xsrf(browser)}
        return {"headers": FETCH | same, "cookies": cookies}

    return make


ADMIN = ("custom:gpuslice:admin", "custom:gpuslice:read-all")
ROLES: dict[str, Role] = {
    "nobody": lambda _world: {},
    "the spawner": _token(lambda world: world.config.broker_token),
    "the node": _token(lambda world: world.config.node_token),
    "the command line": _token(lambda world: world.config.operator_token),
    "a user's token": _token(lambda world: world.reader("ada", ("lab",))),
    "a user's browser": _browser("ada"),
    "a notebook": _token(lambda world: world.notebook("ada", "one")),
    "who reads all": _token(lambda world: world.person("ta1", "custom:gpuslice:read-all")),
    "an administrator's browser": _browser("root1", *ADMIN),
    "Prometheus": _token(lambda world: world.people.token("p", ["read:metrics"], kind="service")),
}
#: Which of them a route of each access is for.
_LOGINS = {"a user's browser", "an administrator's browser"}
_OWN_ALL = {"a user's token", *_LOGINS}
_OWN = {"a notebook", *_OWN_ALL}
_READ_ALL = {"the command line", "who reads all", "an administrator's browser"}
MAY = {
    "PUBLIC": {*ROLES},
    "BROKER": {"the spawner"},
    "NODE": {"the node"},
    "USER": {"who reads all", *_OWN},
    "OWN": _OWN,
    "OWN_ALL": _OWN_ALL,
    "READ": _OWN | _READ_ALL,
    "STOP": {"the command line", *_OWN_ALL},
    "WAIT": _OWN_ALL,
    "READ_ALL": _READ_ALL,
    "ADMIN": {"the command line", "an administrator's browser"},
    "METRICS": {"Prometheus", "the command line"},
}
#: Not while others are to find something: after it, nothing is granted any more.
LAST = "drain"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ServiceLedger]:
    made = ServiceLedger.on_sqlite(tmp_path)
    yield made
    made.close()


def test_the_table_of_roles_knows_every_access() -> None:
    assert {route.access.name for route in ROUTES} <= {*MAY}


@pytest.mark.parametrize("role", ROLES)
def test_every_answer_is_as_the_document_says(world: ServiceLedger, role: str) -> None:
    load_all_checks()
    things = furnish(world)
    caller = ROLES[role](world)
    document = world.ask(None, "GET", "api/openapi.json")
    by_name = {route.name: route for route in ROUTES}
    operations = [
        found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()
    ]
    operations.sort(key=lambda one: one.definition.raw["operationId"] == LAST)
    statuses: dict[str, set[int]] = {}
    for operation in operations:
        route = by_name[operation.definition.raw["operationId"]]
        if route.name == "unaccounted":
            # Not before: beside them nothing is granted.
            add_strangers(world, things)
        admitted = role in MAY[route.access.name]
        statuses[route.name] = _look_at(
            world, operation, things, caller, EXAMPLES if admitted else TURNED_AWAY
        )
        if not admitted:
            assert statuses[route.name] <= {401, 403, 400}, route.name
    # Otherwise the search has seen nothing but refusals.
    mine = [route.name for route in ROUTES if not route.is_page and role in MAY[route.access.name]]
    reached = [name for name in mine if any(status < 300 for status in statuses[name])]
    assert len(reached) >= len(mine) * 0.6, sorted({*mine} - {*reached})
    assert world.problems() == []


def _look_at(
    world: ServiceLedger, operation: APIOperation, things: Things, caller: dict[str, Any],
    count: int,
) -> set[int]:  # fmt: skip
    """Try one operation, mostly as the document says and partly not; what was answered."""
    seen = _try(world, operation, things, caller, count, GenerationMode.POSITIVE)
    if count > TURNED_AWAY:
        seen |= _try(world, operation, things, caller, count // 2, GenerationMode.NEGATIVE)
    return seen


def _try(
    world: ServiceLedger, operation: APIOperation, things: Things, caller: dict[str, Any],
    count: int, mode: GenerationMode,
) -> set[int]:  # fmt: skip
    seen: set[int] = set()
    known = _known(world, things)

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode), chance=st.integers(0, 1 << 30))
    def example(case: Case, chance: int) -> None:
        _deepen(case, known, random.Random(chance), mode is GenerationMode.POSITIVE)
        answer = case.call(base_url=world.at, **caller)
        seen.add(answer.status_code)
        assert answer.status_code in (*range(500), 503), answer.text
        case.validate_response(answer, checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # there is no wrong way to call it
        example()
    return seen


def _known(world: ServiceLedger, things: Things) -> dict[str, list[Any]]:
    """What is there, by the name of the field that may hold it."""
    return {
        "lease_id": [
            things.lease_id, things.granted_id, things.bobs_lease_id, *things.stranger_ids,
        ],
        "number": ["1", "2", "3"],
        "node_id": ["node-1"],
        "device": ["MIG-c0", "MIG-c1", "GPU-a"],
        "request_id": [things.request_id],
        "name": ["ada", "bob", "gus", "hal", "lab", "nobody"],
        "user": ["ada", "bob", "eve"],
        "server": ["", "one", "three", "x"],
        "slice": ["cpu", "quarter", "half", "whole", "mig", "none"],
        "groups": [[], ["lab"]],
        "group": [None, "lab"],
        "version": [None, 1, 2, 3],
        "entry_id": [things.entry_id, 1],
        "before": [str(things.entry_id), f"{world.now}-{things.lease_id}"],
        "after": ["1"],
        "timezone": [None, "UTC", "Europe/Berlin"],
        "per": ["day", "week", "month", "30d", "life"],
        "at_most": ["1", "20", "unlimited"],
        "attempt": [things.request_id],
        "boot_id": [world.node.boot],
        "started_us": [world.now],
        "parent": [None, "lab", "faculty"],
        "first_day": ["2027-03-01", "2026-02-29"],
        "last_day": ["2027-07-31", "2027-02-28"],
        "from_time": ["10:00", "23:30"],
        "til_time": ["12:00", "00:15", "24:61"],
    }  # fmt: skip


def _deepen(case: Case, known: dict[str, list[Any]], chance: random.Random, good: bool) -> None:
    """Put what is there into an example, in most of the places that take it."""

    def other(name: str, value: Any) -> Any:
        if name in known and chance.random() < 0.75:
            return chance.choice(known[name])
        return inner(value)

    def inner(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: other(name, found) for name, found in value.items()}
        if isinstance(value, list):
            return [inner(found) for found in value]
        return value

    if case.path_parameters:
        for name in case.path_parameters:
            if chance.random() < 0.9:
                case.path_parameters[name] = chance.choice(known[name])
    if case.query and "wait_s" in case.query:
        case.query["wait_s"] = 0  # it would be waited for
    if good:
        case.query = inner(case.query) if case.query else case.query
        if isinstance(case.body, dict):
            case.body = inner(case.body)
