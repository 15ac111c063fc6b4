"""Logging of the server process: one JSON object a line on stderr, from our own code and from libraries alike.

Prompts and answers are never logged; a request appears by its id.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

QUIET = ("httpx", "httpcore", "alembic", "transformers", "huggingface_hub", "urllib3", "asyncio")


def configure_logging(level: str) -> None:
    """Sends structlog's and the standard library's records at or above ``level`` (``debug`` to ``error``) to stderr."""
    threshold = getattr(logging, level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=threshold, force=True)
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
