"""Ridge maps between two models that others trained on the same stories, with different tokenizers and widths.

stories260K reads pieces of words, babyllama-105 characters: only text can pair their tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.report import Cell, ContenderResult
from mappers.activations.pairs import pick_tokens
from mappers.alignment import Alignment, align
from mappers.dataset import DatasetRow
from mappers.evaluation import UnexplainedVariance
from mappers.loading import LoadedModel, load_model
from mappers.modules import Mapper
from mappers.pair_sums import PairSums
from mappers.rendering import Rendered, render
from mappers.sites import Site

RIDGE = 1e-3
BATCH = 32
PASSAGE = re.compile(r"\S.{0,198}\S(?=\s)", re.DOTALL)
"""Babyllama-105 has a context of 256 characters."""

Pair = tuple[Site, Site]
Hidden = dict[Site, Tensor]
Batch = tuple[Hidden, Hidden]
"""Aligned activations of source and target at every site."""


def run(bench: Bench) -> None:
    """Every pair of layers, both ways, fitted on passages and measured on the passages that follow them."""
    found = [bench.trained(name) for name in ("stories260K", "babyllama-105")]
    text = bench.text()
    models = [model for model in found if model is not None]
    if len(models) < 2 or text is None:
        return
    torch.set_num_threads(bench.options.threads)
    one, other = (load_model(model.path) for model in models)
    training, held_out = bench.pick((2000, 400), (30, 10))
    passages = [DatasetRow(text=passage) for passage in PASSAGE.findall(text)[: training + held_out]]
    texts = [[render(side.tokenizer, row) for row in passages] for side in (one, other)]
    parts = slice(0, training), slice(training, None)
    for how, depths in (("offsets", "every"), ("position", "matched")):
        fitted, measured = (list(_pairs((one, other), texts, part, how)) for part in parts)
        back = [[(y, x) for x, y in batches] for batches in (fitted, measured)]
        for source, target, data in ((one, other, [fitted, measured]), (other, one, back)):
            title = f"ridge {source.name} -> {target.name}, pairs by {how}, {depths} depth"
            _cell(bench, title, *data, matched=depths == "matched")


def _pairs(
    models: tuple[LoadedModel, LoadedModel], texts: list[list[Rendered]], part: slice, how: Alignment
) -> Iterator[Batch]:
    """Aligned activations at every site of both models, batch by batch."""
    ours, theirs = (side[part] for side in texts)
    for start in range(0, len(ours), BATCH):
        sides = ours[start : start + BATCH], theirs[start : start + BATCH]
        aligned = [align(a, b, how) for a, b in zip(*sides, strict=True)]
        picked = [
            pick_tokens(
                model, _sites(model), [text.ids for text in side], [[pair[place] for pair in row] for row in aligned]
            )
            for place, (model, side) in enumerate(zip(models, sides, strict=True))
        ]
        yield picked[0], picked[1]


def _sites(loaded: LoadedModel) -> list[Site]:
    return [Site(layer) for layer in range(loaded.stack.layers)]


def _cell(bench: Bench, title: str, fitted: Sequence[Batch], held_out: Sequence[Batch], *, matched: bool) -> None:
    results = []
    for pair, mapper in _fit(fitted, matched=matched).items():
        measured = UnexplainedVariance()
        for x, y in held_out:
            measured.add(mapper(x[pair[0]]), y[pair[1]])
        figures = {"fvu": measured.value()}
        label = f"layer {pair[0].layer} -> {pair[1].layer}"
        results.append(ContenderResult(label=label, runs=[figures], median=figures))
    tokens = [sum(len(next(iter(x.values()))) for x, _ in part) for part in (fitted, held_out)]
    bench.add(Cell(title=title, model=f"{tokens[0]} pairs, {tokens[1]} held out", contenders=results))


def _fit(batches: Sequence[Batch], *, matched: bool) -> dict[Pair, Mapper]:
    x, y = batches[0]
    pairs = [(a, b) for a, b in product(x, y) if not matched or a == b]
    sums = {(a, b): PairSums(x[a].shape[1], y[b].shape[1]) for a, b in pairs}
    for x, y in batches:
        for (a, b), pair in sums.items():
            pair.add(x[a], y[b])
    return {pair: found.ridge(ridge=RIDGE) for pair, found in sums.items()}
