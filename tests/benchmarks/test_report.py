from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from benchmarks.machine import machine
from benchmarks.report import Cell, Check, ContenderResult, Limits, Report
from benchmarks.suites import SUITES
from benchmarks.tables import cell_table, check_table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("limits", "value", "met", "aim_met"),
    [
        (Limits(1.0, 2.0), 2.0, True, True),
        (Limits(1.0, 2.0), 1.5, True, False),
        (Limits(1.0, 2.0), 0.9, False, False),
        (Limits(0.5, 0.1, "less"), 0.3, True, False),
        (Limits(0.5, 0.1, "less"), 0.6, False, False),
        (Limits(0.5, 0.1, "less"), None, None, None),
    ],
)
def test_a_demand_is_met_on_the_good_side_of_its_limit(
    limits: Limits, value: float | None, met: bool | None, aim_met: bool | None
) -> None:
    check = Check.of("demand", value, limits)
    assert (check.met, check.aim_met) == (met, aim_met)


def report() -> Report:
    cell = Cell(
        title="work",
        model="m",
        contenders=[
            ContenderResult(label="fast", runs=[{"tokens_per_second": 123.4}], median={"tokens_per_second": 123.4}),
            ContenderResult(label="missing", absent="not installed"),
        ],
    )
    checks = [Check.of("demand", 0.5, Limits(1.0, 2.0), ours="fast"), Check.of("other", None, Limits(1, 2), note="why")]
    return Report(
        suite="s", quick=True, repeats=1, seconds=1, complete=True, machine=machine(2), cells=[cell], checks=checks
    )


def test_a_report_reads_back_as_it_was_and_knows_no_other_fields(tmp_path: Path) -> None:
    text = report().write(tmp_path).read_text()
    assert Report.model_validate_json(text) == report()
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Report.model_validate_json(text.replace('"suite":', '"surplus": 1, "suite":'))


def test_tables_show_who_is_absent_and_what_is_not_met() -> None:
    out = StringIO()
    console = Console(file=out, width=200)
    console.print(cell_table(report().cells[0]), check_table(report().checks))
    lines = out.getvalue().splitlines()
    assert any("fast" in line and "123" in line for line in lines)
    assert any("missing" in line and "not installed" in line for line in lines)
    assert any("demand" in line and "NO" in line for line in lines)
    assert any("other" in line and "not measured" in line and "why" in line for line in lines)


def test_kept_results_are_whole_reports_of_full_runs() -> None:
    for file in (RESULTS / f"{suite}.json" for suite in SUITES if (RESULTS / f"{suite}.json").exists()):
        kept = Report.model_validate_json(file.read_text())
        assert (kept.suite, kept.quick, kept.complete) == (file.stem, False, True), file
        assert kept.repeats >= 5, file
