"""Every line on stderr is one JSON object, whoever wrote it."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging, warnings, structlog
from server.logs import configure_logging
configure_logging("info")
log = structlog.get_logger("ours")
log.info("started", url="http://127.0.0.1:1")
log.debug("unseen")
with structlog.contextvars.bound_contextvars(request_id="req_1"):
    log.warning("refused")
    logging.getLogger("uvicorn.error").info("library %d", 7)
logging.getLogger("httpx").info("unseen")
warnings.warn("careful")
try:
    try:
        {}["a secret prompt"]
    except KeyError as error:
        raise ValueError("a secret prompt") from error
except ValueError:
    log.exception("failed")
    logging.getLogger("uvicorn.error").exception("library failed")
"""


def test_all_lines_are_json() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["event"] for line in lines[:3]] == ["started", "refused", "library 7"]
    assert (lines[0]["url"], lines[0]["level"]) == ("http://127.0.0.1:1", "info")
    assert [line.get("request_id") for line in lines[:3]] == [None, "req_1", "req_1"]
    assert "careful" in lines[3]["event"]
    assert [line["event"] for line in lines[4:]] == ["failed", "library failed"]
    assert [line["exception"] for line in lines[4:]] == [["ValueError", "KeyError"]] * 2
    assert lines[4]["raised_at"][-1].endswith("<module>")
    assert "secret" not in result.stderr
    assert result.stdout == ""
