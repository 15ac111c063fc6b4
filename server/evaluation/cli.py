"""What ``interlock evaluate`` calls: experiments by name, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import JsonValue
from rich.progress import Progress

from server.evaluation.experiments import PAPER
from server.evaluation.lab import Lab
from server.evaluation.own import ROLES, OwnModels, own_experiments
from server.evaluation.scale import FULL, QUICK
from server.evaluation.suite import Started, run_suite


def list_experiments(suite: str) -> list[str]:
    """The names of a suite's experiments in the order of the report."""
    assert suite == "paper"
    return [experiment.name for experiment in PAPER]


def own_models(pairs: Sequence[str], prompts: Path | None, trigger: str, marker: str) -> OwnModels | None:
    """What ``ROLE=PLACE`` pairs and the options beside them mean; None for none.

    Raises ValueError, with the remedy, for a role that is not known or not enough, and where there are no prompts.
    """
    if not pairs:
        return None
    places = dict(pair.partition("=")[::2] for pair in pairs)
    if unknown := [role for role in places if role not in ROLES or not places[role]]:
        raise ValueError(f"{', '.join(unknown)}: write ROLE=PLACE, with a role out of {', '.join(ROLES)}")
    if "tuned" not in places or len(places) < 2:
        raise ValueError("give tuned=PLACE, and base=PLACE (for a switch) or source=PLACE (for a transfer) or both")
    if prompts is None:
        raise ValueError('own models need --prompts FILE: JSON lines {"prompt": ...}')
    return OwnModels(places, prompts, trigger, marker)


def run(
    names: Sequence[str],
    own: OwnModels | None,
    *,
    quick: bool,
    seeds: int | None,
    measure: bool,
    processes: int,
    folder: Path,
    cache: Path,
    device: str,
    max_tokens: int,
    bar: Progress,
) -> dict[str, JsonValue]:
    """Runs the named experiments, on organisms or on models of one's own; returns the report's summary.

    Raises DataError for prompts that cannot be used, ModelLoadError for a model that cannot be loaded.
    """
    overall = bar.add_task("cells", total=None)
    stage = bar.add_task("starting", total=None)

    def started(one: Started) -> None:
        what = f"{one.experiment}: {one.cell.subject}, seed {one.cell.seed}"
        bar.update(overall, description=f"cell {one.number} of {one.total}", completed=one.number - 1, total=one.total)
        bar.console.print(f"{'kept' if one.kept else 'measuring':9} {what}")

    def report(name: str, step: int, total: int | None) -> None:
        bar.update(stage, description=name, completed=step, total=total)

    places = own.places if own is not None else {}
    scale = QUICK if quick else FULL
    if seeds is not None:
        scale = replace(scale, seeds=tuple(range(seeds)))
    lab = Lab(scale, cache, torch.device(device), report, places=places, max_tokens=max_tokens)
    experiments = PAPER if own is None else own_experiments(own, lab)
    return run_suite(
        [one for one in experiments if one.name in names], lab, folder, started, measure=measure, processes=processes
    )
