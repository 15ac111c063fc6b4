"""What alembic runs to apply the scripts: on the connection handed over by ``Database.upgrade``."""

from alembic import context

from server.registry.rows import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
