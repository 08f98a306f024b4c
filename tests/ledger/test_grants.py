"""Grants from many threads at once, on both databases: a place is never given twice."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from fakenode import GIB, NODE, gpu, mig
from gpuslice import wire
from gpuslice.broker.devices import set_state, sync_inventory
from gpuslice.broker.fleetcache import FleetCache
from gpuslice.broker.grant import GrantRules, grant
from gpuslice.broker.verify import verify
from gpuslice.errors import Refused
from gpuslice.fleet.slice_types import slice_types
from gpuslice.ledger import credit, migrate
from gpuslice.ledger.database import Database
from gpuslice.ledger.prices import follow_settings
from gpuslice.ledger.tables import Account, AccountPeriod, Lease
from gpuslice.quotas import policies
from gpuslice.quotas.documents import PolicyDocument
from ledgerworld import START, world_devices, world_settings


class Fleet:
    """A ledger with devices in it, and grants that run in the calling thread."""

    def __init__(self, database: Database, devices: list[wire.DeviceReport]) -> None:
        self.database = database
        settings = world_settings()
        inventory = wire.Inventory(
            node_id=NODE,
            boot_id="b",
            engine="local",
            now_us=START,
            boottime_us=0,
            simulated=True,
            driver_version=None,
            gpu_problem=None,
            host=wire.HostReport(cpu_milli=640_000, ram_bytes=4096 * GIB),
            devices=devices,
            enforcement_ceiling=wire.Enforcement.ADVISORY,
        )
        # Some fleets here lack a kind of device on purpose: those types are then not offered.
        self.catalogue = slice_types(settings, [inventory], strict=False)
        self.rules = GrantRules(
            catalogue=self.catalogue,
            reserve_bytes=settings.fleet.reserve_memory,
            host_reserve_ram=0,
            start_timeout_us=60_000_000,
            hold_horizon_us=600_000_000,
            timezone="UTC",
            currency="EUR",
            closed_nodes={},
        )

        def seed(session: sa.orm.Session) -> None:
            sync_inventory(session, inventory, now=START)
            for offered in self.catalogue.types:
                follow_settings(
                    session, offered.name, offered.rate_u_per_hour, now=START, actor="t"
                )

        database.write(seed)

    def grant(self, user: str, slice_name: str, attempt: str | None = None) -> str:
        """The lease's id; Refused."""
        request = wire.LeaseRequest(
            attempt=attempt or uuid.uuid4().hex, user=user, slice=slice_name
        )
        return self.database.write(
            lambda session: grant(session, request, self.rules, now=START + 1).id
        )

    def in_parallel(self, jobs: list[Callable[[], str]]) -> Counter[str]:
        """All jobs at once; answers counted: ``granted`` or the refusal's reason."""
        barrier = threading.Barrier(len(jobs))
        answers: list[str] = []

        def work(job: Callable[[], str]) -> None:
            barrier.wait()
            try:
                job()
                answers.append("granted")
            except Refused as refused:
                answers.append(refused.refusal.reason)
            except BaseException as error:
                answers.append(repr(error))
                raise

        threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Counter(answers)

    def leases(self) -> list[Lease]:
        return self.database.read(lambda session: list(session.scalars(sa.select(Lease))))


@pytest.fixture
def make_fleet(database: Database) -> Iterator[Callable[..., Fleet]]:
    yield lambda devices: Fleet(database, devices)
    assert database.read(verify) == []


def test_64_spawns_for_10_places(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet([gpu(f"GPU-{i}", i) for i in range(10)])
    answers = fleet.in_parallel([lambda i=i: fleet.grant(f"u{i}", "whole") for i in range(64)])
    assert answers == {"granted": 10, "gpu-full": 54}
    devices = Counter(lease.device_id for lease in fleet.leases())
    assert set(devices.values()) == {1} and len(devices) == 10


def test_64_spawns_of_one_user_with_a_limit_of_3(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet([gpu(f"GPU-{i}", i) for i in range(10)])
    fleet.database.write(
        lambda session: policies.set_policy(
            session,
            policies.EVERYONE,
            None,
            PolicyDocument.model_validate({"each": {"slices": 3}}),
            expected=None,
            actor="t",
            reason="test",
            now=START,
        )
    )

    def spawn(i: int) -> str:
        request = wire.LeaseRequest(
            attempt=uuid.uuid4().hex, user="u", server=f"s{i}", slice="quarter"
        )
        return fleet.database.write(
            lambda session: grant(session, request, fleet.rules, now=START + 1).id
        )

    answers = fleet.in_parallel([lambda i=i: spawn(i) for i in range(64)])
    assert answers == {"granted": 3, "leases-limit": 61}
    active = fleet.database.read(lambda s: s.scalars(sa.select(AccountPeriod.active)).all())
    assert active == [3, 3]  # in all, and of this type


#: What ten holds of a quarter for ten minutes cost, and a little more: never an eleventh.
TEN = {"money": [{"at_most": "1.5", "per": "day"}]}


@pytest.mark.parametrize(
    ("whose", "limits", "reason"),
    [
        ("user", TEN, "budget-limit"),
        ("user", {"gpu_hours": [{"at_most": "0.42", "per": "36h"}]}, "gpu-hours-limit"),
        ("user", {"prepaid": True}, "credit-limit"),
        ("group", TEN, "budget-limit"),
        ("group", {"gpu_hours": [{"at_most": "0.42", "per": "week"}]}, "gpu-hours-limit"),
        ("group", {"slices": 10}, "leases-limit"),
        ("group", {"slices_by_type": {"quarter": 10}}, "slice-type-limit"),
        ("above", TEN, "budget-limit"),
    ],
)
def test_row_12_64_spawns_on_a_budget_for_10(
    make_fleet: Callable[..., Fleet], whose: str, limits: dict[str, object], reason: str
) -> None:
    """Exactly ten, and everybody else is told the limit; nobody passes it by a microunit."""
    fleet = make_fleet([gpu(f"GPU-{i}", i) for i in range(17)])
    named = ("user", "u") if whose == "user" else ("group", "course")
    subject = ("group", "faculty") if whose == "above" else named

    def limit(session: sa.orm.Session) -> None:
        account = policies.account_of(session, *named, START)
        if whose == "above":
            above = policies.account_of(session, *subject, START)
            session.execute(sa.update(Account).where(Account.id == account).values(parent_id=above))
            account = above
        said = {"each" if whose == "user" else "total": limits}
        policies.set_policy(
            session, policies.subject_of(subject[0], account), account,
            PolicyDocument.model_validate(said), expected=None, actor="t", reason="test", now=START,
        )  # fmt: skip
        if "prepaid" in limits:
            credit.give(session, account, 1_500_000, key="k", actor="t", reason="r", now=START)

    fleet.database.write(limit)

    def spawn(i: int) -> str:
        request = wire.LeaseRequest(
            attempt=uuid.uuid4().hex, user="u" if whose == "user" else f"u{i}", server=f"s{i}",
            slice="quarter", groups=["course"],
        )  # fmt: skip
        return fleet.database.write(
            lambda session: grant(session, request, fleet.rules, now=START + 1).id
        )

    answers = fleet.in_parallel([lambda i=i: spawn(i) for i in range(64)])
    assert answers == {"granted": 10, reason: 54}
    with pytest.raises(Refused) as refused:
        spawn(99)
    assert refused.value.refusal.limit


def test_one_attempt_20_times_is_one_lease(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet([gpu("GPU-0", 0)])
    attempt = uuid.uuid4().hex
    answers = fleet.in_parallel([lambda: fleet.grant("u", "quarter", attempt)] * 20)
    assert answers == {"granted": 20}
    assert len(fleet.leases()) == 1
    with pytest.raises(Refused, match="already used"):
        fleet.grant("somebody else", "quarter", attempt)


@pytest.mark.parametrize("round_", range(3))
def test_overlapping_offers_on_one_device(make_fleet: Callable[..., Fleet], round_: int) -> None:
    """Whole, half and quarter compete for one GPU; whoever is first, the sum never exceeds it."""
    fleet = make_fleet([gpu("GPU-0", 0)])
    wanted = ["whole", "half", "quarter", "quarter"] * 8
    wanted = wanted[round_:] + wanted[:round_]
    fleet.in_parallel([lambda i=i, w=w: fleet.grant(f"u{i}", w) for i, w in enumerate(wanted)])
    leases = fleet.leases()
    assert leases
    milli = sum(lease.share_milli or 1000 for lease in leases)
    assert milli <= 1000
    assert len(leases) == 1 or all(lease.kind == "shared" for lease in leases)


def test_mig_instances_whole_and_shares_on_one_device(make_fleet: Callable[..., Fleet]) -> None:
    """A device whose MIG mode is being changed lists instances *and* may be had whole: not both."""
    fleet = make_fleet([gpu("GPU-0", 0)] + [mig(f"MIG-{i}", "GPU-0", 1 + i, i) for i in range(4)])
    wanted = ["whole", "mig", "half", "mig", "quarter", "mig"] * 6
    fleet.in_parallel([lambda i=i, w=w: fleet.grant(f"u{i}", w) for i, w in enumerate(wanted)])
    kinds = {lease.kind for lease in fleet.leases()}
    assert len(kinds) == 1
    assert len({lease.device_id for lease in fleet.leases()}) in (1, 4)
    if kinds == {"mig"}:
        assert len(fleet.leases()) == 4


def test_mig_instances_are_each_leased_once(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(world_devices()[2:])
    answers = fleet.in_parallel([lambda i=i: fleet.grant(f"u{i}", "mig") for i in range(16)])
    assert answers["granted"] == 2
    assert {lease.device_id for lease in fleet.leases()} == {"MIG-c0", "MIG-c1"}


def test_a_device_that_turns_sick_is_not_granted(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet([gpu("GPU-0", 0)])
    sick = lambda s: set_state(  # noqa: E731
        s, NODE, "GPU-0", wire.DeviceState.SICK, "Xid 79", actor="t", now=START
    )
    fleet.database.write(sick)
    with pytest.raises(Refused) as refused:
        fleet.grant("u", "quarter")
    assert refused.value.status == 503
    assert "cpu" in refused.value.refusal.alternatives
    assert fleet.leases() == []


@pytest.mark.postgres
def test_a_grant_on_an_outdated_view_is_made_again(
    postgres_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between snapshot and claim another transaction takes the device: the guard must see it.

    PostgreSQL only: SQLite has one writer at a time, so nothing can come in between.
    """
    database = Database(postgres_database())
    migrate.upgrade(database.engine)
    fleet = Fleet(database, [gpu("GPU-0", 0)])
    real, raced = FleetCache.place, []

    def place(*args: object) -> object:
        found = real(*args)  # type: ignore[arg-type]
        if not raced:
            raced.append(True)
            fleet.grant("other", "whole")
        return found

    monkeypatch.setattr(FleetCache, "place", place)
    with pytest.raises(Refused, match="in use"):
        fleet.grant("u", "whole")
    assert [lease.user_name for lease in fleet.leases()] == ["other"]
    assert database.read(verify) == []
    database.close()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ("nonsense", "unknown-slice"),
        ("NaN", "unknown-slice"),
        ("-1", "unknown-slice"),
        ("../../etc", "unknown-slice"),
    ],
)
def test_refused_requests_leave_nothing(
    make_fleet: Callable[..., Fleet], request_: str, reason: str
) -> None:
    fleet = make_fleet([gpu("GPU-0", 0)])
    with pytest.raises(Refused) as refused:
        fleet.grant("u", request_)
    assert refused.value.refusal.reason == reason
    assert refused.value.refusal.alternatives
    assert fleet.leases() == []
    rows = fleet.database.read(lambda s: s.scalars(sa.select(AccountPeriod)).all())
    assert not rows
