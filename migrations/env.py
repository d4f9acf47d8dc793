"""Alembic's entry point. The registry calls it with an open connection and owns the transaction (registry/schema.py).

Migrations run with foreign keys off and the rows of real registries present: use `op.batch_alter_table`, move data in
SQL, and never import registry.models, which describe the newest tables and not the ones a revision sees.
"""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run migrations with `lorahub db upgrade`: the registry gives them a locked, backed-up database")
context.configure(
    connection=connection,
    version_table=context.config.attributes["version_table"],
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
