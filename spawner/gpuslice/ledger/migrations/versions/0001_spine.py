"""The spine: nodes, devices, accounts, prices, limits, leases, segments and entries.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

from gpuslice.ledger import triggers

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

#: Tables whose rows are facts: written once.
FACTS = ("entry", "segment", "price", "audit")
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("label", sa.String(length=255), nullable=False),
        sa.Column("parent_id", BIG_ID, nullable=True),
        sa.Column("opened_us", sa.BigInteger(), nullable=False),
        sa.Column("closed_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("kind IN ('user', 'group', 'platform')", name=op.f("ck_account_kind")),
        sa.ForeignKeyConstraint(["parent_id"], ["account.id"], name=op.f("fk_account_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
    )
    op.create_table(
        "audit",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_table(
        "meter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("pid_start", sa.BigInteger(), nullable=False),
        sa.Column("beat_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_meter_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_meter")),
    )
    op.create_table(
        "node",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("engine", sa.String(length=16), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("driver_version", sa.String(length=64), nullable=True),
        sa.Column("gpu_problem", sa.Text(), nullable=True),
        sa.Column("enforcement_ceiling", sa.Integer(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.Column("boottime_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
    )
    op.create_table(
        "price",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("price_list", sa.String(length=64), nullable=False),
        sa.Column("slice_type", sa.String(length=64), nullable=False),
        sa.Column("rate_u_per_hour", sa.BigInteger(), nullable=False),
        sa.Column("effective_from_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("rate_u_per_hour >= 0", name=op.f("ck_price_rate")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price")),
        sa.UniqueConstraint(
            "price_list",
            "slice_type",
            "effective_from_us",
            name=op.f("uq_price_price_list_slice_type_effective_from_us"),
        ),
    )
    op.create_table(
        "account_name",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("valid_from_us", sa.BigInteger(), nullable=False),
        sa.Column("valid_til_us", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_account_name_account_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account_name")),
    )
    with op.batch_alter_table("account_name", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_account_name_account_id"), ["account_id"], unique=False
        )
        batch_op.create_index(
            "uq_account_name_current",
            ["source", "name"],
            unique=True,
            sqlite_where=sa.text("valid_til_us IS NULL"),
            postgresql_where=sa.text("valid_til_us IS NULL"),
        )

    op.create_table(
        "account_period",
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("slice_type", sa.String(length=64), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("spent_u", sa.BigInteger(), nullable=False),
        sa.Column("held_u", sa.BigInteger(), nullable=False),
        sa.Column("active", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("active >= 0", name=op.f("ck_account_period_active")),
        sa.CheckConstraint("held_u >= 0", name=op.f("ck_account_period_held")),
        sa.CheckConstraint("spent_u >= 0", name=op.f("ck_account_period_spent")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_account_period_account_id")
        ),
        sa.PrimaryKeyConstraint(
            "account_id", "slice_type", "period", "start_us", name=op.f("pk_account_period")
        ),
    )
    op.create_table(
        "device",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=96), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("cpu_milli", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=96), nullable=True),
        sa.Column("mig_profile", sa.String(length=32), nullable=True),
        sa.Column("mig_start", sa.Integer(), nullable=True),
        sa.Column("mig_size", sa.Integer(), nullable=True),
        sa.Column("mig_compute", sa.Integer(), nullable=True),
        sa.Column("mig_enabled", sa.Boolean(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("share_enforcement", sa.Integer(), nullable=False),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True),
        sa.Column("utilisation_percent", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('gpu', 'mig', 'host')", name=op.f("ck_device_kind")),
        sa.CheckConstraint(
            "state IN ('ok', 'draining', 'sick', 'quarantined')", name=op.f("ck_device_state")
        ),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_device_node_id")),
        sa.PrimaryKeyConstraint("node_id", "id", name=op.f("pk_device")),
    )
    op.create_table(
        "lease",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.String(length=64), nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("user_name", sa.String(length=255), nullable=False),
        sa.Column("server_name", sa.String(length=255), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("slice_type", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("device_id", sa.String(length=96), nullable=True),
        sa.Column("device_model", sa.String(length=128), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("share_milli", sa.Integer(), nullable=True),
        sa.Column("enforcement", sa.Integer(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("price_list", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_us", sa.BigInteger(), nullable=False),
        sa.Column("granted_us", sa.BigInteger(), nullable=False),
        sa.Column("start_before_us", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=True),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("covered_us", sa.BigInteger(), nullable=True),
        sa.Column("billed_us", sa.BigInteger(), nullable=True),
        sa.Column("stop_requested_us", sa.BigInteger(), nullable=True),
        sa.Column("stop_reason", sa.String(length=500), nullable=True),
        sa.Column("stop_actor", sa.String(length=255), nullable=True),
        sa.Column("keep_until_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_at_unknown", sa.Boolean(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("end_reason", sa.String(length=500), nullable=True),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('granted', 'running', 'stopping', 'settled', 'revoking')"
            " OR state IN ('ended', 'cancelled')",
            name=op.f("ck_lease_state"),
        ),
        sa.CheckConstraint(
            "billed_us IS NULL OR billed_us >= started_us", name=op.f("ck_lease_billed")
        ),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_lease_account_id")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_lease_node_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lease")),
        sa.UniqueConstraint("attempt", name=op.f("uq_lease_attempt")),
    )
    with op.batch_alter_table("lease", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_lease_account_id"), ["account_id"], unique=False)
        batch_op.create_index("ix_lease_granted", ["granted_us", "id"], unique=False)
        batch_op.create_index("ix_lease_state", ["state"], unique=False)
        batch_op.create_index(
            "uq_lease_live_server",
            ["account_id", "server_name"],
            unique=True,
            sqlite_where=sa.text(
                "state IN ('granted', 'running', 'stopping', 'settled', 'revoking')"
            ),
            postgresql_where=sa.text(
                "state IN ('granted', 'running', 'stopping', 'settled', 'revoking')"
            ),
        )

    op.create_table(
        "quota_policy",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("slot", sa.String(length=200), nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("account_id", BIG_ID, nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("slice_type", sa.String(length=64), nullable=True),
        sa.Column("limit_value", sa.BigInteger(), nullable=True),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("valid_from_us", sa.BigInteger(), nullable=False),
        sa.Column("valid_til_us", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.CheckConstraint(
            "scope IN ('default', 'user', 'group_total', 'group_member')",
            name=op.f("ck_quota_policy_scope"),
        ),
        sa.CheckConstraint(
            "limit_value IS NULL OR limit_value >= 0", name=op.f("ck_quota_policy_limit")
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_quota_policy_account_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quota_policy")),
    )
    with op.batch_alter_table("quota_policy", schema=None) as batch_op:
        batch_op.create_index(
            "uq_quota_policy_current",
            ["slot"],
            unique=True,
            sqlite_where=sa.text("valid_til_us IS NULL"),
            postgresql_where=sa.text("valid_til_us IS NULL"),
        )

    op.create_table(
        "claim",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("device_id", sa.String(length=96), nullable=False),
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("share_milli", sa.Integer(), nullable=False),
        sa.Column("mig_id", sa.String(length=96), nullable=True),
        sa.Column("mig_start", sa.Integer(), nullable=True),
        sa.Column("mig_size", sa.Integer(), nullable=True),
        sa.Column("cpu_milli", sa.Integer(), nullable=False),
        sa.Column("ram_bytes", sa.BigInteger(), nullable=False),
        sa.Column("taken_version", sa.BigInteger(), nullable=False),
        sa.Column("released_version", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_claim_lease_id")),
        sa.ForeignKeyConstraint(
            ["node_id", "device_id"],
            ["device.node_id", "device.id"],
            name=op.f("fk_claim_node_id_device_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_claim")),
        sa.UniqueConstraint(
            "lease_id", "node_id", "device_id", name=op.f("uq_claim_lease_id_node_id_device_id")
        ),
    )
    with op.batch_alter_table("claim", schema=None) as batch_op:
        batch_op.create_index(
            "ix_claim_device", ["node_id", "device_id", "released_version"], unique=False
        )

    op.create_table(
        "hold",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("amount_u", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('open', 'closed')", name=op.f("ck_hold_state")),
        sa.CheckConstraint("amount_u >= 0", name=op.f("ck_hold_amount")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_hold_account_id")),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_hold_lease_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hold")),
        sa.UniqueConstraint("lease_id", "account_id", name=op.f("uq_hold_lease_id_account_id")),
    )
    op.create_table(
        "notice",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("idem_key", sa.String(length=128), nullable=False),
        sa.Column("account_id", BIG_ID, nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("severity", sa.String(length=8), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_notice_account_id")),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_notice_lease_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notice")),
        sa.UniqueConstraint("idem_key", name=op.f("uq_notice_idem_key")),
    )
    with op.batch_alter_table("notice", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_notice_account_id"), ["account_id"], unique=False)

    op.create_table(
        "segment",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=False),
        sa.Column("from_us", sa.BigInteger(), nullable=False),
        sa.Column("til_us", sa.BigInteger(), nullable=False),
        sa.Column("price_id", BIG_ID, nullable=False),
        sa.Column("payer", sa.String(length=8), nullable=False),
        sa.Column("amount_u", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("payer IN ('user', 'writeoff')", name=op.f("ck_segment_payer")),
        sa.CheckConstraint("amount_u >= 0", name=op.f("ck_segment_amount")),
        sa.CheckConstraint("til_us > from_us", name=op.f("ck_segment_order")),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_segment_lease_id")),
        sa.ForeignKeyConstraint(["price_id"], ["price.id"], name=op.f("fk_segment_price_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segment")),
        sa.UniqueConstraint("lease_id", "from_us", name=op.f("uq_segment_lease_id_from_us")),
    )
    op.create_table(
        "entry",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("idem_key", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("debit_id", BIG_ID, nullable=False),
        sa.Column("credit_id", BIG_ID, nullable=False),
        sa.Column("amount_u", sa.BigInteger(), nullable=False),
        sa.Column("segment_id", BIG_ID, nullable=True),
        sa.Column("leg", sa.Integer(), nullable=False),
        sa.Column("corrects_id", BIG_ID, nullable=True),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("memo", sa.String(length=500), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount_u > 0", name=op.f("ck_entry_amount")),
        sa.CheckConstraint("debit_id <> credit_id", name=op.f("ck_entry_accounts")),
        sa.ForeignKeyConstraint(["corrects_id"], ["entry.id"], name=op.f("fk_entry_corrects_id")),
        sa.ForeignKeyConstraint(["credit_id"], ["account.id"], name=op.f("fk_entry_credit_id")),
        sa.ForeignKeyConstraint(["debit_id"], ["account.id"], name=op.f("fk_entry_debit_id")),
        sa.ForeignKeyConstraint(["segment_id"], ["segment.id"], name=op.f("fk_entry_segment_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entry")),
        sa.UniqueConstraint("idem_key", name=op.f("uq_entry_idem_key")),
        sa.UniqueConstraint("segment_id", "leg", name=op.f("uq_entry_segment_id_leg")),
    )
    with op.batch_alter_table("entry", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_entry_credit_id"), ["credit_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_entry_debit_id"), ["debit_id"], unique=False)
    for statement in triggers.create(op.get_bind().dialect.name, FACTS):
        op.execute(statement)


def downgrade() -> None:
    for statement in triggers.drop(op.get_bind().dialect.name, FACTS):
        op.execute(statement)
    with op.batch_alter_table("entry", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_entry_debit_id"))
        batch_op.drop_index(batch_op.f("ix_entry_credit_id"))

    op.drop_table("entry")
    op.drop_table("segment")
    with op.batch_alter_table("notice", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_notice_account_id"))

    op.drop_table("notice")
    op.drop_table("hold")
    with op.batch_alter_table("claim", schema=None) as batch_op:
        batch_op.drop_index("ix_claim_device")

    op.drop_table("claim")
    with op.batch_alter_table("quota_policy", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_quota_policy_current",
            sqlite_where=sa.text("valid_til_us IS NULL"),
            postgresql_where=sa.text("valid_til_us IS NULL"),
        )

    op.drop_table("quota_policy")
    with op.batch_alter_table("lease", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_lease_live_server",
            sqlite_where=sa.text(
                "state IN ('granted', 'running', 'stopping', 'settled', 'revoking')"
            ),
            postgresql_where=sa.text(
                "state IN ('granted', 'running', 'stopping', 'settled', 'revoking')"
            ),
        )
        batch_op.drop_index("ix_lease_state")
        batch_op.drop_index("ix_lease_granted")
        batch_op.drop_index(batch_op.f("ix_lease_account_id"))

    op.drop_table("lease")
    op.drop_table("device")
    op.drop_table("account_period")
    with op.batch_alter_table("account_name", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_account_name_current",
            sqlite_where=sa.text("valid_til_us IS NULL"),
            postgresql_where=sa.text("valid_til_us IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_account_name_account_id"))

    op.drop_table("account_name")
    op.drop_table("price")
    op.drop_table("node")
    op.drop_table("meter")
    op.drop_table("audit")
    op.drop_table("account")
