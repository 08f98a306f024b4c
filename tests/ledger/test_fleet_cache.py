"""What grants remember of the fleet: always as it is, whoever changed it and however that ended."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from contextlib import suppress

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from fakenode import GIB, gpu, mig
from gpuslice import wire
from gpuslice.broker import fleetcache
from gpuslice.broker.devices import set_state, sync_inventory
from gpuslice.broker.fleetcache import FleetCache
from gpuslice.broker.grant import GrantRules, grant, release_claims
from gpuslice.broker.snapshot import ceilings, fleet_of, fleet_snapshot
from gpuslice.broker.verify import verify
from gpuslice.errors import Refused
from gpuslice.fleet.slice_types import slice_types
from gpuslice.ledger.database import Database
from gpuslice.ledger.prices import follow_settings
from gpuslice.ledger.tables import Claim, Device, Lease
from gpuslice.wire import DeviceState, Enforcement
from ledgerworld import START, world_settings

RAM = GIB


class TakenBack(Exception):
    """The transaction is rolled back."""


def inventory(node: str, devices: list[wire.DeviceReport], **more: object) -> wire.Inventory:
    said = {
        "node_id": node, "boot_id": "b", "engine": "local", "now_us": START, "boottime_us": 0,
        "simulated": True, "driver_version": None, "gpu_problem": None,
        "host": wire.HostReport(cpu_milli=640_000, ram_bytes=4096 * GIB), "devices": devices,
        "enforcement_ceiling": Enforcement.ADVISORY,
    }  # fmt: skip
    return wire.Inventory.model_validate(said | more)


class Fleet:
    """Some nodes, and two services on one ledger: one that remembers, one that never has."""

    def __init__(self, database: Database, nodes: dict[str, list[wire.DeviceReport]]) -> None:
        self.database = database
        self.nodes = nodes
        settings = world_settings()
        catalogue = slice_types(
            settings, [inventory(node, devices) for node, devices in nodes.items()], strict=False
        )
        self.cache = FleetCache()
        self.rules = GrantRules(
            catalogue=catalogue, reserve_bytes=settings.fleet.reserve_memory,
            host_reserve_ram=RAM, start_timeout_us=60_000_000, hold_horizon_us=600_000_000,
            timezone="UTC", currency="EUR", closed_nodes={}, fleets=self.cache,
        )  # fmt: skip
        for node, devices in nodes.items():
            database.write(lambda s, n=node, d=devices: sync_inventory(s, inventory(n, d), now=1))
        for offered in catalogue.types:
            database.write(
                lambda s, one=offered: follow_settings(
                    s, one.name, one.rate_u_per_hour, now=1, actor="t"
                )
            )

    def grant(self, session: Session, slice_name: str, rules: GrantRules | None = None) -> Lease:
        attempt = uuid.uuid4().hex
        request = wire.LeaseRequest(attempt=attempt, user="u", server=attempt, slice=slice_name)
        return grant(session, request, rules or self.rules, now=START)

    def elsewhere(self, slice_name: str) -> Lease:
        """A grant of another process."""
        fresh = GrantRules(**(vars(self.rules) | {"fleets": FleetCache()}))
        return self.database.write(lambda s: self.grant(s, slice_name, fresh))

    def check(self, session: Session) -> None:
        """What is remembered is what there is, in this very transaction."""
        seen = self.cache.look(session, RAM)
        there = fleet_snapshot(session, RAM)
        assert fleet_of(seen.nodes) == there
        assert seen.ceilings == ceilings(session)


def three_nodes() -> dict[str, list[wire.DeviceReport]]:
    return {
        "n1": [gpu("GPU-1a", 0), gpu("GPU-1b", 1)],
        "n2": [gpu("GPU-2", 0, mig_enabled=True), mig("MIG-2a", "GPU-2", 1, 0),
               mig("MIG-2b", "GPU-2", 2, 1)],
        "n3": [gpu("GPU-3a", 0), gpu("GPU-3b", 1), gpu("GPU-3c", 2)],
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_it_is_always_what_a_full_read_gives(database: Database, seed: int) -> None:
    fleet = Fleet(database, three_nodes())
    chance = random.Random(seed)

    def anything(session: Session) -> None:
        """One change of whatever kind."""
        match chance.choice(["grant", "grant", "release", "state", "inventory"]):
            case "grant":
                try:
                    fleet.grant(session, chance.choice(["quarter", "half", "whole", "mig", "cpu"]))
                except Refused:
                    return
            case "release":
                live = session.scalars(
                    sa.select(Claim.lease_id).where(Claim.released_version.is_(None))
                ).all()
                if live:
                    release_claims(session, chance.choice(sorted(set(live))))
            case "state":
                rows = session.execute(sa.select(Device.node_id, Device.id)).all()
                node, device = chance.choice(sorted(map(tuple, rows)))
                state = chance.choice([DeviceState.OK, DeviceState.OK, DeviceState.DRAINING])
                set_state(session, node, device, state, "a test", actor="t", now=START)
            case "inventory":
                node = chance.choice(sorted(fleet.nodes))
                devices = list(fleet.nodes[node])
                if chance.random() < 0.5:
                    devices.append(gpu(f"GPU-{node}-{chance.randrange(4)}", 7))
                ceiling = chance.choice([Enforcement.ADVISORY, Enforcement.EXCLUSIVE])
                said = inventory(node, devices, enforcement_ceiling=ceiling)
                sync_inventory(session, said, now=START)

    def transaction(session: Session) -> None:
        for _ in range(chance.randint(1, 3)):
            if chance.random() < 0.5:
                fleet.check(session)
            try:
                with session.begin_nested():
                    anything(session)
                    if chance.random() < 0.5:
                        fleet.check(session)
                    if chance.random() < 0.3:
                        raise TakenBack
            except TakenBack:
                pass
            else:
                anything(session)
            fleet.check(session)
        if chance.random() < 0.3:
            raise TakenBack

    for _ in range(25):
        with suppress(TakenBack):
            database.write(transaction)
        if chance.random() < 0.3:
            with suppress(Refused):
                fleet.elsewhere(chance.choice(["quarter", "half", "cpu"]))
        (database.read if chance.random() < 0.5 else database.write)(fleet.check)


def test_what_was_rolled_back_is_not_remembered(database: Database) -> None:
    """Its version is soon another claim's: to believe it is to lease a device twice."""
    fleet = Fleet(database, {"n1": [gpu("GPU-1", 0)]})

    def two_then_none(session: Session) -> None:
        fleet.grant(session, "quarter")
        fleet.grant(session, "quarter")  # it has looked at the first one
        raise TakenBack

    with pytest.raises(TakenBack):
        database.write(two_then_none)
    fleet.elsewhere("whole")  # one raise of each version, as the first quarter was
    for name in ("quarter", "half", "whole"):
        with pytest.raises(Refused) as refused:
            database.write(lambda s, name=name: fleet.grant(s, name))
        assert refused.value.refusal.reason == "gpu-full"
    assert database.read(verify) == []


def test_what_a_savepoint_took_back_is_not_remembered(database: Database) -> None:
    fleet = Fleet(database, {"n1": [gpu("GPU-1", 0)]})

    def one_of_two(session: Session) -> None:
        with pytest.raises(TakenBack), session.begin_nested():
            fleet.grant(session, "quarter")
            fleet.grant(session, "quarter")
            raise TakenBack

    database.write(one_of_two)
    fleet.elsewhere("whole")
    with pytest.raises(Refused):
        database.write(lambda s: fleet.grant(s, "quarter"))
    assert database.read(verify) == []


def test_a_view_that_is_behind_is_found_out_by_the_guard(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the stamps ever lie: no second lease, and the truth at the second try."""
    fleet = Fleet(database, {"n1": [gpu("GPU-1", 0)]})
    database.write(fleet.check)
    lies = database.read(fleetcache.stamps)
    fleet.elsewhere("whole")
    monkeypatch.setattr(fleetcache, "stamps", lambda session: lies)
    tries: list[str] = []
    forget = fleet.cache.forget

    def count(node_id: str) -> None:
        tries.append(node_id)
        forget(node_id)

    monkeypatch.setattr(fleet.cache, "forget", count)
    with pytest.raises(Refused) as refused:
        database.write(lambda s: fleet.grant(s, "whole"))
    assert refused.value.refusal.reason == "gpu-full"
    assert tries == ["n1"]
    assert database.read(verify) == []


def test_only_what_changed_is_read_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(database, three_nodes())
    asked: list[set[str]] = []
    real = fleetcache.read_nodes

    def read_nodes(session: Session, reserve: int, only: set[str]) -> object:
        asked.append(set(only))
        return real(session, reserve, only)

    monkeypatch.setattr(fleetcache, "read_nodes", read_nodes)

    def reads(job: Callable[[Session], object]) -> list[set[str]]:
        asked.clear()
        database.write(job)
        return list(asked)

    assert reads(lambda s: fleet.cache.look(s, RAM)) == [{"n1", "n2", "n3"}]
    assert reads(lambda s: fleet.cache.look(s, RAM)) == []
    assert reads(lambda s: fleet.grant(s, "mig")) == []
    assert reads(lambda s: fleet.grant(s, "whole")) == [{"n2"}]
    assert reads(lambda s: fleet.cache.look(s, RAM)) != []
    # Another reserve makes other hosts.
    assert reads(lambda s: fleet.cache.look(s, RAM + 1)) == [{"n1", "n2", "n3"}]
    lease = fleet.elsewhere("cpu")
    assert reads(lambda s: fleet.cache.look(s, RAM + 1)) == [{lease.node_id}]


def test_a_refusal_names_what_is_free_instead(database: Database) -> None:
    fleet = Fleet(database, {"n1": [gpu("GPU-1", 0)]})
    fleet.elsewhere("half")
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            database.write(lambda s: fleet.grant(s, "whole"))
        assert refused.value.refusal.reason == "gpu-full"
        assert refused.value.refusal.alternatives == ["cpu", "half", "quarter"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_grant_reads_by_indexes(database: Database) -> None:
    """What it reads must not grow with what the ledger has ever seen.

    PostgreSQL rightly reads small tables whole; its indexes are the same.
    """
    fleet = Fleet(database, three_nodes())
    fleet.elsewhere("quarter")
    asked: list[tuple[str, object]] = []
    event.listen(
        database.engine, "before_cursor_execute",
        lambda _c, _cursor, statement, parameters, _x, _many: asked.append((statement, parameters)),
    )  # fmt: skip
    database.write(lambda s: fleet.grant(s, "half"))
    plans = []
    with database.engine.connect() as connection:
        for statement, parameters in list(asked):
            if statement.startswith(("SELECT", "UPDATE")):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                plans += [row.detail for row in rows]
    grown = ("claim", "lease", "entry", "segment", "hold", "account", "account_name", "policy",
             "account_period", "price", "request")  # fmt: skip
    assert [plan for plan in plans if plan.startswith(tuple(f"SCAN {one}" for one in grown))] == []
    assert any("ix_claim_live" in plan for plan in plans)
    assert any("uq_lease_live_server" in plan for plan in plans)
