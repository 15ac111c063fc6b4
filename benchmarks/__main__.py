"""``python -m benchmarks``, which is also ``make bench`` and ``interlock bench``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks.bench import RESULTS, Bench, Options
from benchmarks.machine import machine
from benchmarks.report import Cell, Check, Report
from benchmarks.suites import SUITES
from benchmarks.tables import cell_table, check_table

PROGRAMS = {
    "soak": ("minutes of mixed traffic, and what they left behind", 12),
    "durability": ("jobs whose worker, server or both are killed at 50 random points", 25),
    "beside": ("time between tokens while a job trains on the same cores", 15),
    "lag": ("how long prompts of maximal size hold up the event loop", 1.5),
}
"""What is no suite: one at a time, with options of its own (``--help``). Name -> summary and minutes."""

MODELS_VARIABLE = "INTERLOCK_BENCH_MODELS"
TEXT_VARIABLE = "INTERLOCK_BENCH_TEXT"


def main() -> None:
    """Runs suites one after the other; each writes its own JSON, so that a broken run can go on by suite."""
    if sys.argv[1:] and sys.argv[1] in PROGRAMS:
        import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
    parser = _parser()
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.suites if name not in SUITES]:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    console = Console(stderr=arguments.json, highlight=False, markup=False, width=None if os.isatty(1) else 200)
    if arguments.list:
        listing = {name: {"summary": suite.summary, "minutes": suite.minutes} for name, suite in SUITES.items()}
        for name, suite in SUITES.items():
            console.print(f"{name:<14} {suite.summary} ({suite.minutes:g} min)")
        console.print("by themselves, never with all:")
        for name, (summary, minutes) in PROGRAMS.items():
            console.print(f"{name:<14} {summary} ({minutes:g} min)")
        if arguments.json:
            print(json.dumps({"suites": listing, "programs": list(PROGRAMS)}))
        return
    options = Options(
        quick=arguments.quick,
        repeats=arguments.repeats,
        threads=arguments.threads,
        models=arguments.models,
        text=arguments.text,
        out=arguments.out or (RESULTS / "quick" if arguments.quick else RESULTS),
    )
    reports = [run_suite(name, options, console) for name in arguments.suites or SUITES]
    checks = [check for report in reports for check in report.checks]
    if checks:
        console.print(check_table(checks))
    if arguments.json:
        print(json.dumps({"suites": {report.suite: json.loads(report.model_dump_json()) for report in reports}}))


def run_suite(name: str, options: Options, console: Console) -> Report:
    """Measures one suite, shows each cell when it is there, and keeps what is there so far in its JSON file."""
    began = time.monotonic()
    report = Report(
        suite=name,
        quick=options.quick,
        repeats=1 if options.quick else options.repeats,
        seconds=0.0,
        complete=False,
        machine=machine(options.threads),
    )

    def changed(part: Cell | Check | str) -> None:
        if not isinstance(part, Check):
            console.print(cell_table(part) if isinstance(part, Cell) else part)
        report.write(options.out)

    console.rule(f"{name}: {SUITES[name].summary}")
    SUITES[name].run(Bench(options, report, changed))
    report.seconds, report.complete = round(time.monotonic() - began, 1), True
    console.print(f"{name}: {report.seconds:.0f} s, written to {report.write(options.out)}")
    return report


def _place(text: str) -> Path:
    """Absolute, because workers have a working directory of their own."""
    return Path(text).expanduser().resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interlock bench", description="Measure this machine: speed and memory against peers on the same weights."
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="suites to run (default: all); see --list")
    parser.add_argument("--list", action="store_true", help="list the suites and the minutes that each takes")
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, one repeat: shows that it runs, not how fast"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every measurement (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every contender (default: 2)")
    parser.add_argument(
        "--models",
        type=_place,
        default=os.environ.get(MODELS_VARIABLE),
        help=f"folder that holds stories260K and babyllama-105 (variable {MODELS_VARIABLE})",
    )
    parser.add_argument(
        "--text",
        type=_place,
        default=os.environ.get(TEXT_VARIABLE),
        help=f"a text of stories for these models (variable {TEXT_VARIABLE})",
    )
    parser.add_argument("--out", type=_place, help="folder for the JSON files (default: benchmarks/results)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


if __name__ == "__main__":
    main()
