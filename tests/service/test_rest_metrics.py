"""What Prometheus reads, against the ledger: every label from the start, totals that are sums."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from rest_calls import RESERVED, furnish

import gpuslice.broker
import gpuslice.quotas
from gpuslice.broker.broker import Broker
from gpuslice.broker.stats import SOURCES
from gpuslice.ledger.tables import Entry, Lease, QueueRequest, Segment, SliceTotal
from gpuslice.quotas import admission
from gpuslice.service.metrics import NO_ROUTE, OTHER_REASON, REASONS
from gpuslice.service.routes import ROUTES
from gpuslice.units import HOUR_US, MICRO, MINUTE_US, SECOND_US
from ledgerworld import SLICES
from quotaworld import finish, passes, set_policy, spawn
from serviceledger import ServiceLedger

TYPES = {*(str(one["name"]) for one in SLICES), "other"}
Sample = dict[tuple[str, ...], float]


def scrape(world: ServiceLedger) -> dict[str, Sample]:
    """Samples by metric name, then by label values in the order of the labels' names."""
    token = world.people.token("prometheus", ["read:metrics"], kind="service")
    text = world.call(token, "GET", "metrics").text
    found: dict[str, Sample] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_every_label_value_is_there_before_anything_happens(ledger: ServiceLedger) -> None:
    found = scrape(ledger)
    payers = ("user", "writeoff", "idle")
    states = ("granted", "running", "stopping", "settled", "revoking")
    kinds = ("exclusive", "mig", "shared", "cpu")
    due: dict[str, set[tuple[str, ...]]] = {
        "gpuslice_lease_hold_leases": {(kind, state) for kind in kinds for state in states},
        "gpuslice_slice_hold_leases": {(name, state) for name in TYPES for state in states},
        "gpuslice_queue_wait_requests": {(name,) for name in TYPES},
        "gpuslice_queue_wait_oldest_seconds": {(name,) for name in TYPES},
        "gpuslice_queue_offer_requests": {(name,) for name in TYPES},
        "gpuslice_slice_bill_seconds_total": {(by, name) for by in payers for name in TYPES},
        "gpuslice_slice_bill_money_total": {(by, name) for by in payers for name in TYPES},
        "gpuslice_slice_correct_money_total": {
            (kind, name) for kind in ("refund", "surcharge") for name in TYPES
        },
    }  # fmt: skip
    for metric, labels in due.items():
        assert {*found[metric]} == labels, metric
        assert {*found[metric].values()} == {0.0}, metric
    refusals = found["gpuslice_refusal_answer_total"]
    assert {*refusals} == {(reason,) for reason in (*REASONS, OTHER_REASON)}
    assert {*found["gpuslice_error_raise_total"]} == {(source,) for source in SOURCES}
    routes = {route.name for route in ROUTES} | {NO_ROUTE}
    codes = ("2xx", "3xx", "4xx", "5xx")
    assert {*found["gpuslice_request_answer_total"]} == {
        (code, route) for code in codes for route in routes
    }
    assert {*found["gpuslice_request_duration_seconds_count"]} == {(route,) for route in routes}
    assert "gpuslice_node_reconcile_age_seconds" in found


#: Of `gpuslice.broker`: what is about accounts, policies, money, or a lease that there is.
OTHER_DESKS = {
    "admin", "broker", "devicedesk", "devices", "lifecycle", "moneydesk", "people", "peopledesk",
    "peopleimport", "policydesk", "reservationdesk", "strangerdesk", "strangers", "views",
}  # fmt: skip


def refusals_in(text: str) -> set[str]:
    return {*re.findall(r'Refused\(\s*"([a-z-]+)"', text)}


def test_every_reason_for_which_a_start_or_a_place_is_refused_has_its_label() -> None:
    """Read from the code that refuses: a new reason without a label is found here."""
    placing = import_module("gpuslice.placement.place")
    said = {*admission._REASONS.values(), *placing._REASONS}
    for package in (gpuslice.broker, gpuslice.quotas):
        for file in Path(package.__path__[0]).glob("*.py"):
            if package is gpuslice.quotas or file.stem not in OTHER_DESKS:
                said |= refusals_in(file.read_text())
    said |= refusals_in(inspect.getsource(Broker.grant) + inspect.getsource(Broker._take_back))
    # About a request or a policy that is known already, and not about getting a place or a slice.
    said -= {"no-such-request", "already-over", "stale-version", "total-of-a-user"}
    # Of a name that no user can have; and what keeps back somebody who is in line already.
    said -= {"no-such-name", "hub-silent", "held-up"}
    assert "reserved" in said and "runtime-unavailable" in said
    assert said <= {*REASONS}


def test_time_and_money_are_the_sums_of_the_ledger(ledger: ServiceLedger) -> None:
    things = furnish(ledger)
    root = ledger.config.operator_token
    ended = spawn(ledger, "bob", "half", [], "late")
    passes(ledger, 90 * MINUTE_US, step_us=30 * MINUTE_US)
    ledger.stop(ended)
    ledger.now += 7 * SECOND_US  # after the stop was asked for: the platform's time
    finish(ledger, ended)
    for kind, amount in (("refund", 3), ("surcharge", 5), ("refund", 11)):
        body = {"entry_id": things.entry_id, "kind": kind, "amount_u": amount, "reason": "r"}
        ledger.ask(root, "POST", "api/admin/corrections", body)

    found = scrape(ledger)
    billed = ledger.database.read(
        lambda s: s.execute(
            sa.select(
                Segment.payer, Lease.slice_type, sa.func.sum(Segment.til_us - Segment.from_us),
                sa.func.sum(Segment.amount_u),
            ).join(Lease, Lease.id == Segment.lease_id).group_by(Segment.payer, Lease.slice_type)
        ).all()
    )  # fmt: skip
    assert {("user", "half"), ("writeoff", "half"), ("user", "quarter")} <= {
        (payer, name) for payer, name, _, _ in billed
    }
    seconds, money = (
        {key: value for key, value in found[f"gpuslice_slice_bill_{what}_total"].items() if value}
        for what in ("seconds", "money")
    )
    assert seconds == {(by, name): int(us) / SECOND_US for by, name, us, _ in billed}
    assert money == {(by, name): int(u) / MICRO for by, name, _, u in billed if u}
    corrected = found["gpuslice_slice_correct_money_total"]
    assert (corrected["refund", "quarter"], corrected["surcharge", "quarter"]) == (
        14 / MICRO, 5 / MICRO,
    )  # fmt: skip
    assert ledger.problems() == []


def test_counters_go_on_over_a_restart_and_never_back(ledger: ServiceLedger) -> None:
    furnish(ledger)
    before = scrape(ledger)
    ledger.put_up_again()
    after = scrape(ledger)
    for metric in ("gpuslice_slice_bill_seconds_total", "gpuslice_slice_bill_money_total"):
        assert after[metric] == before[metric]
        assert sum(after[metric].values()) > 0


def test_what_is_no_longer_configured_is_other(ledger: ServiceLedger) -> None:
    lease_id = spawn(ledger, "ada", "quarter", [])
    passes(ledger, 2 * HOUR_US, step_us=HOUR_US)
    started_us = ledger.view(lease_id).started_us or 0

    def rename(session: sa.orm.Session) -> None:
        for table in (Lease, SliceTotal):
            session.execute(sa.update(table).values(slice_type="of-last-year"))

    ledger.database.write(rename)
    found = scrape(ledger)
    assert found["gpuslice_slice_hold_leases"]["other", "running"] == 1
    closed_us = ledger.now // HOUR_US * HOUR_US  # what came after it is not billed yet
    seconds = (closed_us - started_us) / SECOND_US
    assert found["gpuslice_slice_bill_seconds_total"]["user", "other"] == seconds
    assert {name for name, _ in found["gpuslice_slice_hold_leases"]} == TYPES
    assert lease_id not in str(found)


def test_the_line_and_who_has_waited_longest(ledger: ServiceLedger) -> None:
    for user, after_s in (("ada", 0), ("bob", 40), ("zebedee", 20)):
        ledger.now += after_s * SECOND_US
        body = {"slice": "whole", "user": user, "server": "w"}
        ledger.ask(ledger.config.broker_token, "POST", "api/broker/queue", body)
    ledger.now += 5 * SECOND_US
    offered = ledger.ask(
        ledger.config.broker_token, "POST", "api/broker/queue", {"slice": "half", "user": "zebedee"}
    )

    def offer(session: sa.orm.Session) -> None:
        session.execute(
            sa.update(QueueRequest)
            .where(QueueRequest.id == offered["request_id"])
            .values(state="offered")
        )

    ledger.database.write(offer)
    found = scrape(ledger)
    assert found["gpuslice_queue_wait_requests"][("whole",)] == 3
    assert found["gpuslice_queue_wait_oldest_seconds"][("whole",)] == 65
    assert found["gpuslice_queue_wait_requests"][("half",)] == 0
    assert found["gpuslice_queue_offer_requests"][("half",)] == 1
    assert "zebedee" not in str(found)


def reserve_all(world: ServiceLedger) -> None:
    """Every quarter that there is, for the lab, at any time."""
    body = RESERVED | {
        "group": "lab", "count": 8, "first_day": "2026-01-01", "weekdays": [],
        "from_time": "00:00", "til_time": "00:00",
    }  # fmt: skip
    world.ask(world.config.operator_token, "POST", "api/admin/reservations", body)


def test_refusals_count_by_reason(ledger: ServiceLedger) -> None:
    set_policy(ledger, "user", "ada", {"each": {"slices": 1, "slice_types": ["cpu"]}})
    broker = ledger.config.broker_token

    def ask(name: str, attempt: str) -> int:
        body: dict[str, Any] = {"attempt": attempt * 32, "user": "ada", "slice": name}
        return ledger.call(
            broker, "POST", "api/broker/leases", body | {"server": attempt}
        ).status_code

    assert [ask("cpu", "a"), ask("cpu", "b"), ask("whole", "c")] == [201, 409, 403]
    reserve_all(ledger)
    body = {"attempt": "d" * 32, "user": "bob", "slice": "quarter"}
    assert ledger.call(broker, "POST", "api/broker/leases", body).status_code == 503
    ledger.call(broker, "GET", "api/broker/leases/" + "0" * 32)
    found = scrape(ledger)["gpuslice_refusal_answer_total"]
    assert found["leases-limit",] == 1
    assert found["slice-not-allowed",] == 1
    assert found["reserved",] == 1
    assert found["other",] == 1


@pytest.mark.parametrize("what", ["us", "amount_u"])
def test_verify_sees_a_total_that_is_not_the_sum(ledger: ServiceLedger, what: str) -> None:
    furnish(ledger)
    assert ledger.problems() == []
    column = getattr(SliceTotal, what)
    ledger.database.write(lambda s: s.execute(sa.update(SliceTotal).values({column: column + 1})))
    problems = ledger.problems()
    assert problems and all(problem.startswith("slices ") for problem in problems)


def test_a_scrape_reads_no_entry_and_no_segment(ledger: ServiceLedger) -> None:
    """So it costs the same with ten million of them."""
    furnish(ledger)
    read: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        read.append(statement.lower())

    sa.event.listen(ledger.database.engine, "before_cursor_execute", note)
    scrape(ledger)
    sa.event.remove(ledger.database.engine, "before_cursor_execute", note)
    tables = (Segment.__tablename__, Entry.__tablename__)
    assert any("slice_total" in statement for statement in read)
    assert not [one for one in read if any(f"from {name}" in one for name in tables)]
