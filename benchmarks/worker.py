"""The process of one contender: ``python -m benchmarks.worker``, spoken to with one JSON object a line.

First line in: ``{"module", "model", "threads", "options", "packages"}``. Answer: ``{"versions", "loaded_rss_mib"}``,
``{"unavailable"}`` or ``{"error"}``. Each further line in is a :class:`~benchmarks.workload.Work`. Answer: ``{"traces",
"peak_rss_mib"}`` or ``{"error"}``. The end of the input ends the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any, TextIO

from benchmarks.contenders import Contender, Unavailable
from benchmarks.resident import forget_peak, resident_mib
from benchmarks.workload import RequestTrace, Work, work_from_json


def main() -> None:
    """Serves one contender until stdin ends."""
    _end_with_parent()
    answers = _own_stdout()
    setup = json.loads(sys.stdin.readline())
    try:
        make = import_module(f"benchmarks.contenders.{setup['module']}").make
        contender: Contender = make(setup["model"], setup["threads"], **setup["options"])
        hello = {"versions": _versions(setup["packages"]), "loaded_rss_mib": getattr(contender, "loaded_rss_mib", None)}
    except (ImportError, Unavailable) as error:
        _tell(answers, {"unavailable": str(error)})
        return
    except Exception as error:  # noqa: BLE001 - the parent reports whatever it was, with this process's log
        traceback.print_exc()
        _tell(answers, {"error": repr(error)})
        return
    _tell(answers, hello)
    for line in sys.stdin:
        _tell(answers, _measured(contender, work_from_json(json.loads(line))))


def _measured(contender: Contender, work: Work) -> dict[str, Any]:
    try:
        if work.primer:
            contender.run(replace(work, requests=work.primer))
        forget_peak()
        traces = _one_at_a_time(contender, work) if work.one_at_a_time else contender.run(work)
        return {"traces": [asdict(trace) for trace in traces], "peak_rss_mib": resident_mib("VmHWM")}
    except Exception as error:  # noqa: BLE001 - a contender that fails is reported, and the others go on
        traceback.print_exc()
        return {"error": repr(error)}


def _one_at_a_time(contender: Contender, work: Work) -> list[RequestTrace]:
    began, traces = perf_counter(), []
    for request in work.requests:
        sent = perf_counter() - began
        (trace,) = contender.run(replace(work, requests=(request,)))
        traces.append(RequestTrace(sent, tuple(sent + time for time in trace.times_s), trace.tokens))
    return traces


def _versions(packages: list[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _end_with_parent() -> None:
    """A process that is stopped cannot see that its stdin has ended (man 2 prctl, PR_SET_PDEATHSIG is 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _own_stdout() -> TextIO:
    """The real stdout for answers alone: what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _tell(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
