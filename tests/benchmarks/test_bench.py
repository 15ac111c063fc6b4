"""The harness at work: real worker processes, tiny models; nothing about speed."""

from __future__ import annotations

import dataclasses
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import run_suite
from benchmarks.bench import Bench, Entry, Options
from benchmarks.contenders import ENGINE, GENERATE, Spec
from benchmarks.machine import machine
from benchmarks.models import parameters, random_llama
from benchmarks.report import Limits, Report
from benchmarks.suites import SUITES
from benchmarks.suites.mixes import half_switched
from benchmarks.workload import equal

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    report = Report(suite="s", quick=True, repeats=1, seconds=0, complete=False, machine=machine(1))
    return Bench(Options(quick=True, threads=1, cache=tmp_path, out=tmp_path), report, changed=lambda _: None)


def test_contenders_do_the_same_work_and_who_cannot_is_named(bench: Bench) -> None:
    model = bench.llama("15M")
    nobody, uninstalled = Spec("nobody", "no_such_module"), Spec("peer", "generate", environment="no-such-peer")
    broken = GENERATE.having("broken", dtype="float7")
    entries = [
        Entry(spec, lambda seed: equal(3, 6, 5, model.vocab, seed, half_switched(model)))
        for spec in (GENERATE, ENGINE["float32"], nobody, uninstalled, broken)
    ]
    with bench.workers():
        cell = bench.cell("work", model, entries)
        bench.compare("ratio", cell, [ENGINE["float32"].label], [GENERATE.label], Limits(0.0, 1e9))
        bench.compare("nothing there", cell, [ENGINE["float32"].label], ["nobody"], Limits(0.0, 1.0))
    generate, ours = (cell.result(spec.label) for spec in (GENERATE, ENGINE["float32"]))
    assert ours.equal_tokens == generate.equal_tokens == 1.0
    for result in (generate, ours):
        assert result.absent is None
        assert len(result.runs) == 1
        assert {"tokens_per_second", "ttft_p95_ms", "itl_p95_ms", "peak_rss_mib"} <= set(result.median)
        assert set(result.versions) == {"torch", "transformers"}
    assert "no_such_module" in (cell.result("nobody").absent or "")
    assert "make bench-peers PEERS=no-such-peer" in (cell.result("peer").absent or "")
    assert "float7" in (cell.result("broken").absent or "")
    ratio, missing = bench.report.checks
    assert (ratio.met, ratio.aim_met, ratio.against) == (True, False, GENERATE.label)
    assert missing.met is None
    assert "no_such_module" in missing.note


def test_the_random_model_is_written_once_and_is_what_its_name_says(tmp_path: Path) -> None:
    model = random_llama("tiny", tmp_path)
    file = Path(model.path) / "model.safetensors"
    written = file.stat().st_mtime_ns
    assert dataclasses.replace(random_llama("tiny", tmp_path)) == model
    assert file.stat().st_mtime_ns == written
    # Embeddings (tied), and for each block four attention matrices, three of the MLP, two norms; one norm at the end.
    assert parameters(model) == 512 * 64 + 4 * (4 * 64**2 + 3 * 64 * 128 + 2 * 64) + 64
    assert model.kv_bytes(10, 4) == 2 * 4 * 64 * 4 * 10


def test_what_lies_elsewhere_is_left_out_with_a_note(bench: Bench) -> None:
    SUITES["startup"].run(bench)
    assert bench.report.cells == []
    assert "INTERLOCK_BENCH_MODELS" in bench.report.notes[0]


def test_a_quick_run_of_a_suite_writes_a_whole_report(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=200)
    report = run_suite("growth", Options(quick=True, threads=1, cache=tmp_path, out=tmp_path), console)
    assert Report.model_validate_json((tmp_path / "growth.json").read_text()) == report
    assert report.complete
    assert [cell.title.removeprefix("growth with ") for cell in report.cells] == [
        "rows",
        "context",
        "layers with sites",
        "distinct interventions",
    ]
    assert all(result.runs for cell in report.cells for result in cell.contenders)
