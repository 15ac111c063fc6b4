"""Schema history, run at start by :meth:`server.registry.database.Database.upgrade`."""
