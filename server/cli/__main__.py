"""``python -m server.cli`` is ``interlock``."""

from server.cli.root import main

main()
