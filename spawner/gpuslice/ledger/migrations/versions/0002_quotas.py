"""Quotas, budgets and the queue: policies, GPU time, credit, requests, reservations, digests.

Revision ID: 0002
Revises: 0001
"""

import json

import sqlalchemy as sa
from alembic import op

from gpuslice.ledger import triggers

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: Tables whose rows are facts: written once.
FACTS = ("allowance", "digest", "lease_account")
#: What a row of these tables, and of those of 0001, is known by: each key is unique.
KEYS = {
    "entry": (("id",), ("idem_key",), ("segment_id", "leg")),
    "segment": (("id",), ("lease_id", "from_us")),
    "price": (("id",), ("price_list", "slice_type", "effective_from_us")),
    "audit": (("id",),),
    "allowance": (("id",),),
    "digest": (("number",),),
    "lease_account": (("lease_id", "account_id"),),
}
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
#: A quarter of an hour, microseconds.
BUCKET_US = 900_000_000

_LIVE = "('granted', 'running', 'stopping', 'settled', 'revoking')"


def upgrade() -> None:
    _tables()
    _columns()
    _indexes()
    _policies()
    for statement in _FIGURES:
        op.execute(statement)
    for statement in triggers.create(op.get_bind().dialect.name, FACTS, first=False):
        op.execute(statement)
    for statement in triggers.guard_keys(op.get_bind().dialect.name, KEYS):
        op.execute(statement)


def _tables() -> None:
    op.create_table(
        "digest",
        sa.Column("number", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("first_entry", sa.BigInteger(), nullable=True),
        sa.Column("last_entry", sa.BigInteger(), nullable=True),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.String(length=200), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_digest")),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("caller", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("pk_idempotency_key")),
    )
    op.create_table(
        "credit_grant",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("amount_u", sa.BigInteger(), nullable=False),
        sa.Column("used_u", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount_u > 0", name=op.f("ck_credit_grant_amount")),
        sa.CheckConstraint("used_u >= 0 AND used_u <= amount_u", name=op.f("ck_credit_grant_used")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_credit_grant_account_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_grant")),
    )
    op.create_index(
        op.f("ix_credit_grant_account_id"), "credit_grant", ["account_id"], unique=False
    )
    op.create_table(
        "policy",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("account_id", BIG_ID, nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("valid_from_us", sa.BigInteger(), nullable=False),
        sa.Column("valid_til_us", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_policy_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
        sa.UniqueConstraint("subject", "version", name=op.f("uq_policy_subject_version")),
    )
    op.create_index(
        "uq_policy_current",
        "policy",
        ["subject"],
        unique=True,
        sqlite_where=sa.text("valid_til_us IS NULL"),
        postgresql_where=sa.text("valid_til_us IS NULL"),
    )
    op.create_table(
        "reservation",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("title", sa.String(length=255), nullable=False),
        sa.Column("slice_type", sa.String(length=64), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("first_day", sa.String(length=10), nullable=False),
        sa.Column("last_day", sa.String(length=10), nullable=False),
        sa.Column("weekdays", sa.String(length=7), nullable=False),
        sa.Column("from_time", sa.String(length=5), nullable=False),
        sa.Column("til_time", sa.String(length=5), nullable=False),
        sa.Column("notice_us", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("cancelled_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("count > 0", name=op.f("ck_reservation_count")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_reservation_account_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservation")),
    )
    op.create_index(op.f("ix_reservation_account_id"), "reservation", ["account_id"], unique=False)
    op.create_table(
        "allowance",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("from_us", sa.BigInteger(), nullable=False),
        sa.Column("til_us", sa.BigInteger(), nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=True),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('money', 'gpu_hours')", name=op.f("ck_allowance_kind")),
        sa.CheckConstraint("amount > 0", name=op.f("ck_allowance_amount")),
        sa.CheckConstraint("til_us > from_us", name=op.f("ck_allowance_order")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_allowance_account_id")
        ),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_allowance_lease_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_allowance")),
    )
    op.create_index(op.f("ix_allowance_account_id"), "allowance", ["account_id"], unique=False)
    op.create_table(
        "lease_account",
        sa.Column("lease_id", sa.String(length=32), nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_lease_account_account_id")
        ),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_lease_account_lease_id")),
        sa.PrimaryKeyConstraint("lease_id", "account_id", name=op.f("pk_lease_account")),
    )
    op.create_index(
        op.f("ix_lease_account_account_id"), "lease_account", ["account_id"], unique=False
    )
    op.create_table(
        "request",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("user_name", sa.String(length=255), nullable=False),
        sa.Column("server_name", sa.String(length=255), nullable=False),
        sa.Column("slice_type", sa.String(length=64), nullable=False),
        sa.Column("groups", sa.Text(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("auto_start", sa.Boolean(), nullable=False),
        sa.Column("declared_us", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_us", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.Column("lease_id", sa.String(length=32), nullable=True),
        sa.Column("offer_til_us", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('waiting', 'offered', 'starting') "
            "OR state IN ('fulfilled', 'left', 'expired', 'refused')",
            name=op.f("ck_request_state"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_request_account_id")),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_request_lease_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request")),
        sa.UniqueConstraint("lease_id", name=op.f("uq_request_lease_id")),
    )
    op.create_index(op.f("ix_request_account_id"), "request", ["account_id"], unique=False)
    op.create_table(
        "slice_total",
        sa.Column("slice_type", sa.String(length=64), nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("us", sa.BigInteger(), nullable=False),
        sa.Column("amount_u", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "what IN ('user', 'writeoff', 'idle', 'refund', 'surcharge')",
            name=op.f("ck_slice_total_what"),
        ),
        sa.PrimaryKeyConstraint("slice_type", "what", name=op.f("pk_slice_total")),
    )
    op.create_index("ix_request_state", "request", ["state", "created_us"], unique=False)
    op.create_index(
        "uq_request_waiting",
        "request",
        ["account_id", "server_name"],
        unique=True,
        sqlite_where=sa.text("state IN ('waiting', 'offered', 'starting')"),
        postgresql_where=sa.text("state IN ('waiting', 'offered', 'starting')"),
    )
    op.create_index(
        "ix_claim_live",
        "claim",
        ["node_id", "device_id"],
        unique=False,
        sqlite_where=sa.text("released_version IS NULL"),
        postgresql_where=sa.text("released_version IS NULL"),
    )


def _columns() -> None:
    for table, column in (
        ("account", sa.Column("version", sa.Integer(), nullable=False, server_default="1")),
        ("account", _maybe("hub_seen_us")),
        ("account", _maybe("hub_created_us")),
        ("account", _maybe("missing_since_us")),
        ("account_period", _number("gpu_us")),
        ("account_period", _number("held_gpu_us")),
        ("entry", _maybe("grant_id")),
        ("hold", _number("gpu_us")),
        ("lease", sa.Column("gpu_milli", sa.Integer(), nullable=False, server_default="0")),
        ("lease", _maybe("group_id")),
        ("lease", sa.Column("groups", sa.Text(), nullable=False, server_default="[]")),
        ("lease", sa.Column("hold_kind", sa.String(8), nullable=False, server_default="rolling")),
        ("lease", _maybe("declared_us")),
        ("lease", _maybe("session_us")),
        ("lease", _maybe("guaranteed_til_us")),
        ("lease", _maybe("deadline_us")),
        ("lease", sa.Column("deadline_reason", sa.String(500), nullable=True)),
        ("lease", sa.Column("warned_min", sa.Integer(), nullable=True)),
        ("lease", _maybe("absorbed_from_us")),
        ("lease", _maybe("open_before_us")),
        ("lease", _maybe("opened_us")),
    ):
        op.add_column(table, column)


def _indexes() -> None:
    """What an account's newest entries, corrections of one, and a user's leases are found by."""
    op.drop_index("ix_entry_debit_id", table_name="entry")
    op.drop_index("ix_entry_credit_id", table_name="entry")
    op.create_index("ix_entry_debit", "entry", ["debit_id", "id"], unique=False)
    op.create_index("ix_entry_credit", "entry", ["credit_id", "id"], unique=False)
    op.create_index(
        "ix_entry_corrects",
        "entry",
        ["corrects_id"],
        unique=False,
        sqlite_where=sa.text("corrects_id IS NOT NULL"),
        postgresql_where=sa.text("corrects_id IS NOT NULL"),
    )
    op.create_index("ix_lease_user", "lease", ["user_name", "granted_us", "id"], unique=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def _maybe(name: str) -> sa.Column[int | None]:
    return sa.Column(name, sa.BigInteger(), nullable=True)


def _policies() -> None:
    """Each limit on concurrent slices becomes a version of its subject's policy."""
    connection = op.get_bind()
    rows = connection.execute(
        sa.text(
            "SELECT scope, account_id, limit_value, valid_from_us, valid_til_us, actor "
            "FROM quota_policy WHERE kind = 'concurrent_slices' ORDER BY id"
        )
    ).all()
    versions: dict[str, int] = {}
    for scope, account_id, limit, valid_from, valid_til, actor in rows:
        whose = {"user": "user", "group_member": "group"}.get(scope)
        subject = "everyone" if whose is None else f"{whose}:{account_id}"
        versions[subject] = versions.get(subject, 0) + 1
        slices = "unlimited" if limit is None else limit
        connection.execute(
            sa.text(
                "INSERT INTO policy (subject, account_id, version, document, valid_from_us, "
                "valid_til_us, actor) VALUES (:subject, :account, :version, :document, :since, "
                ":til, :actor)"
            ),
            {
                "subject": subject, "account": account_id, "version": versions[subject],
                "document": json.dumps({"each": {"slices": slices}}), "since": valid_from,
                "til": valid_til, "actor": actor,
            },
        )  # fmt: skip
    op.drop_index("uq_quota_policy_current", table_name="quota_policy")
    op.drop_table("quota_policy")


_GPU_US = "(s.til_us - s.from_us) * l.gpu_milli / 1000"
# ruff: noqa: S608  (every word of these statements is a constant of this file)
#: What leases and segments that are there give to the new columns and projections.
_FIGURES = (
    """
    UPDATE lease SET gpu_milli = CASE kind
      WHEN 'exclusive' THEN 1000
      WHEN 'shared' THEN COALESCE(share_milli, (
        SELECT lease.memory_bytes * 1000 / d.memory_bytes FROM device d
        WHERE d.node_id = lease.node_id AND d.id = lease.device_id), 0)
      WHEN 'mig' THEN COALESCE((
        SELECT 1000 * d.mig_compute / 7 FROM device d
        WHERE d.node_id = lease.node_id AND d.id = lease.device_id), 0)
      ELSE 0 END
    """,
    "INSERT INTO lease_account (lease_id, account_id, depth) SELECT id, account_id, 0 FROM lease",
    f"""
    INSERT INTO account_period
      (account_id, slice_type, period, start_us, spent_u, held_u, active, gpu_us, held_gpu_us)
    SELECT l.account_id, '', 'bucket', s.from_us / {BUCKET_US} * {BUCKET_US},
      CAST(SUM(s.amount_u) AS BIGINT), 0, 0, CAST(SUM({_GPU_US}) AS BIGINT), 0
    FROM segment s JOIN lease l ON l.id = s.lease_id WHERE s.payer = 'user'
    GROUP BY l.account_id, s.from_us / {BUCKET_US}
    """,
    f"""
    INSERT INTO account_period
      (account_id, slice_type, period, start_us, spent_u, held_u, active, gpu_us, held_gpu_us)
    SELECT account_id, slice_type, 'life', 0, 0, 0, COUNT(*), 0, 0
    FROM lease WHERE state IN {_LIVE} GROUP BY account_id, slice_type
    """,
    """
    UPDATE account_period SET gpu_us = (
      SELECT COALESCE(SUM(b.gpu_us), 0) FROM account_period b
      WHERE b.account_id = account_period.account_id AND b.period = 'bucket')
    WHERE period = 'life' AND slice_type = ''
    """,
    """
    INSERT INTO slice_total (slice_type, what, us, amount_u)
    SELECT l.slice_type, s.payer, CAST(SUM(s.til_us - s.from_us) AS BIGINT),
      CAST(SUM(s.amount_u) AS BIGINT)
    FROM segment s JOIN lease l ON l.id = s.lease_id GROUP BY l.slice_type, s.payer
    """,
)


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back to an older version; restore a backup")
