"""What it costs to collect activations over the bare forward, and the memory of a fit between two wide models."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.models import Model
from benchmarks.pool import CHECKOUT, ContenderFailed
from benchmarks.report import Check, Limits
from benchmarks.wide_fit import KINDS
from mappers.activations.collect import collect, pad_batch
from mappers.activations.sharding import Recipe, write_shards
from mappers.loading import LoadedModel, load_model
from mappers.rendering import Rendered
from mappers.sites import Site

BATCH = 16
BARE, ONE, ALL, SHARDS = "bare forward", "one site", "all sites", "all sites, float16, in shards"


def run(bench: Bench) -> None:
    """Texts of mixed lengths in batches of like length; then a fit of 4096 x 4096 in a fresh process.

    Processor time leaves out what other processes take; it also leaves out waiting for the disk.
    """
    for shape in ("15M", "125M"):
        _collection(bench, bench.llama(shape), shape)
    _fit(bench)


def _collection(bench: Bench, model: Model, shape: str) -> None:
    torch.set_num_threads(bench.options.threads)
    loaded = load_model(model.path)
    draw = random.Random(0)
    count, longest = bench.pick({"15M": (48, 192), "125M": (8, 64)}[shape], (4, 16))
    lengths = [draw.randint(longest // 8, longest) for _ in range(count)]
    sequences = [tuple(draw.randrange(model.vocab) for _ in range(length)) for length in lengths]
    sites = [Site(layer) for layer in range(model.layers)]
    work: dict[str, Callable[[], None]] = {
        BARE: lambda: _forward(loaded, sequences),
        ONE: lambda: _consume(loaded, [Site(model.middle)], sequences),
        ALL: lambda: _consume(loaded, sites, sequences),
        SHARDS: lambda: _write(loaded, sites, sequences),
    }
    for each in work.values():
        each()
    contenders = {label: _timed(each, sum(lengths)) for label, each in work.items()}
    cell = bench.timed(f"{count} texts of {longest // 8} to {longest} tokens", model.name, contenders)
    for figure, kind in (("tokens_per_second", ""), ("tokens_per_processor_second", ", processor time")):
        for label, limits in ((ONE, Limits(0.9, 0.98)), (SHARDS, Limits(0.8, 0.95))):
            demand = f"{label}, against the bare forward, {shape}{kind}"
            bench.compare(demand, cell, [label], [BARE], limits, figure)


def _timed(work: Callable[[], None], tokens: int) -> Callable[[int], Figures]:
    def run_once(_repeat: int) -> Figures:
        began, began_cpu = perf_counter(), process_time()
        work()
        elapsed, elapsed_cpu = perf_counter() - began, process_time() - began_cpu
        return {"tokens_per_second": tokens / elapsed, "tokens_per_processor_second": tokens / elapsed_cpu}

    return run_once


def _forward(loaded: LoadedModel, sequences: list[tuple[int, ...]]) -> None:
    """The same batches as :func:`mappers.activations.collect.collect` makes, without a hook and without the head."""
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    backbone: Any = loaded.model.base_model
    for start in range(0, len(order), BATCH):
        batch = pad_batch(sequences, order[start : start + BATCH], torch.device("cpu"))
        with torch.no_grad():
            backbone(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long(), use_cache=False)


def _consume(loaded: LoadedModel, sites: list[Site], sequences: list[tuple[int, ...]]) -> None:
    for batch in collect(loaded, sites, sequences, batch_size=BATCH):
        for site in sites:
            batch.real(site)


def _write(loaded: LoadedModel, sites: list[Site], sequences: list[tuple[int, ...]]) -> None:
    texts = {row: _rendered(ids) for row, ids in enumerate(sequences)}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(tuple(sites), batch_size=BATCH, shard_bytes=16 << 20)
        for _ in write_shards(loaded, texts, recipe, Path(folder)):
            pass


def _rendered(ids: tuple[int, ...]) -> Rendered:
    spans = tuple((place, place + 1) for place in range(len(ids)))
    return Rendered("x" * len(ids), ids, spans, tuple(range(1, len(ids) + 1)), ((0, len(ids)),))


def _fit(bench: Bench) -> None:
    width = bench.pick(4096, 128)
    labels = {f"{kind}, {width} x {width}": kind for kind in KINDS}
    work = {label: partial(_grown, bench, kind, width) for label, kind in labels.items()}
    cell = bench.timed("a fit in a fresh process", "random activations", work, repeats=1)
    note = f"the sums themselves are {2 * width * width * 8 / 2**20:.0f} MiB"
    for label, kind in labels.items():
        found = cell.result(label).median.get("growth_mib")
        title = f"peak RSS growth of a {kind} fit at d = {width}, MiB"
        limits = Limits(1024.0, 800.0, "less")
        bench.check(Check.of(title, found and round(found, 1), limits, ours=label, note=note))


def _grown(bench: Bench, kind: str, width: int, _repeat: int) -> Figures:
    command = [sys.executable, "-m", "benchmarks.wide_fit", kind, str(width), str(bench.options.threads)]
    ran = subprocess.run(command, cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ContenderFailed(f"failed: {ran.stderr.strip().splitlines()[-1]}")
    measured: Figures = json.loads(ran.stdout.splitlines()[-1])
    return measured
