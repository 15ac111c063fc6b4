"""The suites on collecting and mapping activations at work: that they measure what they say, nothing about speed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bench import Bench, Options
from benchmarks.machine import machine
from benchmarks.report import Report
from benchmarks.suites import mapping
from mappers.dataset import DatasetRow
from mappers.loading import load_model
from mappers.rendering import render


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    report = Report(suite="s", quick=True, repeats=1, seconds=0, complete=False, machine=machine(1))
    return Bench(Options(quick=True, threads=1, cache=tmp_path, out=tmp_path), report, changed=lambda _: None)


def test_without_models_or_text_the_maps_are_left_out_with_a_reason(bench: Bench, tmp_path: Path) -> None:
    mapping.run(bench)
    assert bench.report.cells == []
    assert [("--models" in note, "--text" in note) for note in bench.report.notes] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    file = tmp_path / "text"
    file.write_text("once upon a time")
    bench.options = replace(bench.options, text=file)
    assert bench.text() == "once upon a time"


def test_passages_keep_every_word_and_fit_the_context() -> None:
    words = ["w" * length for length in random.Random(0).choices(range(2, 12), k=400)]
    passages = mapping.PASSAGE.findall(" ".join(words) + "\n")
    assert " ".join(passages).split() == words
    assert max(map(len, passages)) <= 200


def test_tokens_that_end_together_are_told_better_from_each_other_than_those_of_one_place(
    bench: Bench, shared_data: Path
) -> None:
    models = tuple(load_model(str(shared_data / "models" / name)) for name in ("stories260K", "babyllama-105"))
    text = (shared_data / "text" / "tinystories_val_794K.txt").read_text(encoding="utf-8")
    rows = [DatasetRow(text=passage) for passage in mapping.PASSAGE.findall(text[:12_000])]
    texts = [[render(side.tokenizer, row) for row in rows] for side in models]
    for how in ("offsets", "position"):
        fitted, held_out = (list(mapping._pairs(models, texts, part, how)) for part in (slice(45), slice(45, None)))
        mapping._cell(bench, how, fitted, held_out, matched=True)
    by_text, by_place = ([result.median["fvu"] for result in cell.contenders] for cell in bench.report.cells)
    assert len(by_text) == 5
    assert all(text < 0.95 * place for text, place in zip(by_text, by_place, strict=True))
