"""The ``interlock`` command: one module a command, imported only when it is called."""

from server.cli.root import main

__all__ = ["main"]
