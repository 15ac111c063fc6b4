"""Background jobs: one spawned worker process each, supervised by the server over one table."""
