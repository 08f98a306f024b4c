"""Runs migrations on the connection that `gpuslice.ledger.migrate` hands over."""

from alembic import context

from gpuslice.ledger.migrate import VERSION_TABLE
from gpuslice.ledger.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite cannot ALTER most things
)
with context.begin_transaction():
    context.run_migrations()
