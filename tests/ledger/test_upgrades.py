"""A ledger of every released revision, with data in it, becomes one of this revision."""

# ruff: noqa: E501
from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from gpuslice.broker.verify import verify
from gpuslice.ledger import counters, migrate
from gpuslice.ledger.database import Database
from gpuslice.ledger.tables import AccountPeriod, Lease, LeaseAccount
from gpuslice.quotas import policies
from ledgerworld import START

HOUR = 3_600_000_000
#: The first full hour of the leases below.
MARK = (START // HOUR + 1) * HOUR


def insert(connection: sa.Connection, table: str, **values: Any) -> None:
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)


def lease(connection: sa.Connection, number: int, **values: Any) -> str:
    lease_id = f"{number:032x}"
    insert(connection, "lease", **(
        {
            "id": lease_id, "attempt": lease_id, "account_id": 10, "user_name": "ada",
            "server_name": f"s{number}", "node_id": "n", "slice_type": "quarter",
            "title": "Quarter", "kind": "shared", "device_id": "GPU-a", "device_model": "H100",
            "memory_bytes": 20 << 30, "share_milli": 250, "enforcement": 0, "simulated": True,
            "price_list": "default", "state_us": START, "granted_us": START,
            "start_before_us": START + HOUR, "finished_at_unknown": False,
        }
        | values
    ))  # fmt: skip
    return lease_id


def data_of_0001(connection: sa.Connection) -> None:
    """An ended lease and a running one of ada, and limits with a history."""
    insert(connection, "node", id="n", engine="local", boot_id="b", simulated=True,
           enforcement_ceiling=0, seen_us=START, boottime_us=0)  # fmt: skip
    for name, kind, version in (("GPU-a", "gpu", 2), ("host", "host", 3)):
        insert(connection, "device", node_id="n", id=name, kind=kind, position=0, model="H100",
               memory_bytes=80 << 30, cpu_milli=64_000, mig_enabled=False, simulated=True,
               share_enforcement=0, state="ok", version=version, seen_us=START)  # fmt: skip
    for number, kind, label in ((1, "platform", "writeoff"), (2, "platform", "revenue"),
                                (10, "user", "ada"), (11, "group", "course")):  # fmt: skip
        insert(connection, "account", id=number, kind=kind, label=label, opened_us=START)
        source = {"platform": "platform", "user": "hub:user", "group": "hub:group"}[kind]
        insert(connection, "account_name", source=source, name=label, account_id=number,
               valid_from_us=START)  # fmt: skip
    insert(connection, "price", id=1, price_list="default", slice_type="quarter",
           rate_u_per_hour=3_600_000, effective_from_us=START, actor="t", created_us=START)  # fmt: skip
    limits = (
        ("default", None, 1, START, START + 5), ("default", None, None, START + 5, None),
        ("user", 10, 3, START, None), ("group_member", 11, 2, START, None),
    )  # fmt: skip
    for scope, account, limit, since, til in limits:
        insert(connection, "quota_policy", slot=f"{scope}/{account}/concurrent_slices//{since}",
               scope=scope, account_id=account, kind="concurrent_slices", limit_value=limit,
               period="life", timezone="UTC", valid_from_us=since, valid_til_us=til, actor="root")  # fmt: skip
    over = lease(connection, 1, state="ended", started_us=MARK - 10_000_000, billed_us=MARK + 7,
                 covered_us=MARK + 7, finished_us=MARK + 7, ended_us=MARK + 9,
                 stop_requested_us=MARK + 2)  # fmt: skip
    pieces = (
        (over, MARK - 10_000_000, MARK, "user", 10_000), (over, MARK, MARK + 2, "user", 0),
        (over, MARK + 2, MARK + 7, "writeoff", 0),
    )  # fmt: skip
    runs = lease(connection, 2, state="running", started_us=MARK - 500_000, billed_us=MARK,
                 covered_us=MARK + 5, boot_id="b")  # fmt: skip
    for number, (one, since, til, payer, amount) in enumerate(
        (*pieces, (runs, MARK - 500_000, MARK, "user", 500)), 1
    ):
        insert(connection, "segment", id=number, lease_id=one, from_us=since, til_us=til,
               price_id=1, payer=payer, amount_u=amount, created_us=til)  # fmt: skip
        if amount:
            insert(connection, "entry", idem_key=f"usage:{one}:{since}:0", kind="usage", debit_id=10,
                   credit_id=2, amount_u=amount, segment_id=number, leg=0, actor="meter", memo="",
                   created_us=til)  # fmt: skip
    insert(connection, "hold", lease_id=runs, account_id=10, amount_u=600_000, state="open",
           updated_us=START)  # fmt: skip
    insert(connection, "hold", lease_id=over, account_id=10, amount_u=0, state="closed",
           updated_us=START)  # fmt: skip
    insert(connection, "account_period", account_id=10, slice_type="", period="life", start_us=0,
           spent_u=10_500, held_u=600_000, active=1)  # fmt: skip
    for one, released in ((over, 2), (runs, None)):
        for device in ("GPU-a", "host"):
            insert(connection, "claim", lease_id=one, node_id="n", device_id=device, whole=False,
                   memory_bytes=20 << 30 if device != "host" else 0, share_milli=250,
                   cpu_milli=0, ram_bytes=0, taken_version=1 if released else 2,
                   released_version=released)  # fmt: skip


def test_from_0001(database_url: str) -> None:
    database = Database(database_url)
    migrate.upgrade(database.engine, "0001")
    with database.engine.begin() as connection:
        data_of_0001(connection)
    migrate.upgrade(database.engine)
    assert database.read(verify) == []
    with database.engine.connect() as connection:
        assert (
            connection.execute(
                sa.select(Lease.gpu_milli, Lease.hold_kind, LeaseAccount.account_id).join(
                    LeaseAccount, LeaseAccount.lease_id == Lease.id
                )
            ).all()
            == [(250, "rolling", 10)] * 2
        )
        spent = connection.execute(
            sa.select(AccountPeriod.start_us, AccountPeriod.spent_u, AccountPeriod.gpu_us)
            .where(AccountPeriod.period == counters.BUCKET)
            .order_by(AccountPeriod.start_us)
        ).all()
        # GPU time is a quarter of 10.5 seconds; the two microseconds after the hour round to none.
        assert spent == [(counters.bucket(MARK - 1), 10_500, 2_625_000), (MARK, 0, 0)]
    history = database.read(lambda s: policies.history(s, policies.EVERYONE))
    assert [(one.version, one.document.each.slices, one.valid_til_us) for one in history] == [
        (2, "unlimited", None),
        (1, 1, START + 5),
    ]
    current = database.read(policies.every_current)
    assert {one.subject: json.loads(one.document.model_dump_json(exclude_defaults=True))
            for one in current} == {
        "everyone": {"each": {"slices": "unlimited"}},
        "user:10": {"each": {"slices": 3}},
        "group:11": {"each": {"slices": 2}},
    }  # fmt: skip
    database.close()
