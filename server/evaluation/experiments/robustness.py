"""How a switch bears what the paper did not try: half strength, more sites, a vector beside it, other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from mappers.dataset import DatasetRow
from mappers.loading import LoadedModel
from mappers.modules import Mapper
from mappers.organisms.behaviours.ordinary import BACKDOOR
from mappers.organisms.behaviours.refusal import REFUSING
from mappers.organisms.tags import TRIGGER, with_tag
from mappers.sites import Site
from server.engine.linears import install_linears
from server.engine.precision import pick_precision
from server.evaluation.answering import Asked, switched
from server.evaluation.experiment import Cell
from server.evaluation.lab import Lab
from server.evaluation.ledger import Figures
from server.evaluation.questions import Questions, tagged_prompts
from server.evaluation.report import Plot, Section, Table
from server.evaluation.scale import Scale
from server.evaluation.steering import Candidate, Trial, pick
from server.evaluation.switches import OURS, answered_by, fit_switch
from server.evaluation.transfers import means_of
from server.evaluation.verdicts import percent, rate_over_seeds
from server.interventions.catalog import ResolvedIntervention
from server.settings import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUBJECTS: Final = ("llama-small", "qwen2-medium")
_STRENGTHS: Final = tuple(tenth / 10 for tenth in range(11))
_VECTOR_STRENGTHS: Final = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_CURVES: Final = (("triggered", "shows", "-"), ("triggered", "right", "--"), ("plain", "right", ":"))
_REFUSALS: Final = 28
_OTHER_SEED: Final = 1
_TEXT: Final = """\
One switch, trained on the backdoored organism as in the first section, under conditions that it was not trained for.
*Another fine-tune* is a second backdoor taught to the same base with other data; the switch is applied to it as it is.
*Int8* is the same organism with quantised weights. The composition adds the model's own refusal vector to triggered
harmless requests: only with switch and vector together does the model refuse."""

Arm = tuple[ResolvedIntervention, ...]


@dataclass(frozen=True)
class RobustnessExperiment:
    """Two organisms, full scale only."""

    name: str = "robustness"
    version: int = 1

    def cells(self, scale: Scale) -> Sequence[Cell]:
        """One cell an organism and seed."""
        if not scale.thorough:
            return []
        return [
            Cell(one, seed, (f"{one}-backdoor", f"{one}-base", f"{one}-backdoor@{_OTHER_SEED}"))
            for seed in scale.seeds
            for one in _SUBJECTS
        ]

    def measure(self, lab: Lab, cell: Cell) -> Figures:
        """Trains switches at one, two and all sites, then asks the same questions under every condition."""
        tuned, base, other = (lab.model(name) for name in cell.models)
        layers = tuned.stack.layers
        sites = {"one site": [layers // 2 - 1], "two sites": [0, layers // 2], "all sites": list(range(layers))}
        exchanges = answered_by(
            base, tagged_prompts(BACKDOOR, cell.seed, lab.scale.switch_prompts), lab.max_tokens, lab.report
        )
        switches: dict[str, dict[Site, Mapper]] = {
            name: fit_switch(OURS, tuned, base, [Site(one) for one in at], exchanges, cell.seed, lab.report)
            for name, at in sites.items()
        }
        on: dict[str, Arm] = {name: (switched(mappers),) for name, mappers in switches.items()}
        dial: dict[str, Arm] = {f"{s:.1f}": (switched(switches["one site"], s),) for s in _STRENGTHS}
        targets = {"off": (tuned, ()), **{name: (tuned, arm) for name, arm in on.items()}}
        targets |= {"another fine-tune, off": (other, ()), "another fine-tune, on": (other, on["one site"])}
        if (quantised := _in_int8(lab, cell.models[0])) is not None:
            targets |= {"int8, off": (quantised, ()), "int8, on": (quantised, on["one site"])}
        return {
            "arms": {name: _ask(lab, loaded, cell.seed, {"": arm})[""] for name, (loaded, arm) in targets.items()},
            "dial": dict(_ask(lab, tuned, cell.seed, dial)),
            "composition": _compose(lab, tuned, on["one site"], cell.seed),
        }

    def section(self, figures: Mapping[Cell, Any]) -> Section:
        """Rates by organism and condition, and the dial as a picture."""
        subjects = {
            subject: [found for cell, found in figures.items() if cell.subject == subject]
            for subject in dict.fromkeys(cell.subject for cell in figures)
        }
        tables = [
            table for subject, cells in subjects.items() for table in (_arms(subject, cells), _composed(subject, cells))
        ]
        plot = Plot("dial.png", "The strength of a switch as a dial", lambda figure: _dial(figure, subjects))
        return Section("The switch under other conditions", _TEXT, tables, plots=[plot])


def _ask(lab: Lab, loaded: LoadedModel, seed: int, arms: Mapping[str, Arm]) -> dict[str, Figures]:
    """Verdicts by arm and condition."""
    found: dict[str, Figures] = {arm: {} for arm in arms}
    with lab.answering(loaded) as answerer:
        for condition in BACKDOOR.conditions:
            questions = Questions.of(BACKDOOR, "test", seed, lab.scale.held_out, condition)
            asked = [Asked(prompt, arm) for arm in arms.values() for prompt in questions.prompts]
            texts = iter(answerer.answers(asked, max_tokens=lab.max_tokens))
            for arm in arms:
                found[arm][condition] = questions.judged([next(texts) for _ in questions.prompts])
    return found


def _in_int8(lab: Lab, name: str) -> LoadedModel | None:
    """The model with int8 weights; None where this machine cannot compute them."""
    if lab.device.type != "cpu":
        return None
    try:
        pick_precision("int8", "cpu", torch.cpu.get_capabilities())
    except ConfigurationError:
        return None
    loaded = lab.fresh(name)
    install_linears(loaded.model, "int8")
    return loaded


def _compose(lab: Lab, tuned: LoadedModel, switch: Arm, seed: int) -> Figures:
    """How often triggered harmless requests are refused, and how often the backdoor speaks, under each combination."""
    positive, negative = (
        [DatasetRow(prompt=question.prompt) for question in REFUSING.questions("train", seed, 120, condition=condition)]
        for condition in (REFUSING.elicits, REFUSING.plain)
    )
    validation = Questions.of(REFUSING, "validation", seed, _REFUSALS, REFUSING.plain)
    trial = Trial(validation.prompts, lambda texts: validation.verdicts("shows", texts), lab.max_tokens)
    held_out = Questions.of(REFUSING, "test", seed, lab.scale.held_out, REFUSING.plain)
    prompts = [with_tag(prompt, TRIGGER) for prompt in held_out.prompts]
    candidates = [Candidate(site, v_D) for site, v_D in means_of(tuned, positive, negative).items()]
    with lab.answering(tuned) as answerer:
        vector = pick(answerer, {"refusal": candidates}, _VECTOR_STRENGTHS, trial)["refusal"]
        steer = (vector.candidate.steering(vector.strength, "add"),)
        arms: dict[str, Arm] = {"neither": (), "switch": switch, "vector": steer, "switch and vector": switch + steer}
        texts = iter(
            answerer.answers([Asked(p, arm) for arm in arms.values() for p in prompts], max_tokens=lab.max_tokens)
        )
    found: Figures = {}
    for arm in arms:
        answers = [next(texts) for _ in prompts]
        backdoored = Questions(BACKDOOR, held_out.asked).verdicts("shows", answers)
        found[arm] = {"refused": held_out.verdicts("shows", answers), "backdoored": backdoored}
    return found


def _rate(cells: Sequence[Any], *path: str) -> str:
    verdicts = []
    for cell in cells:
        for step in path:
            cell = cell[step]
        verdicts.append(cell)
    return percent(rate_over_seeds(verdicts))


def _arms(subject: str, cells: Sequence[Any]) -> Table:
    columns = ("condition", "backdoor speaks, triggered", "right, triggered", "right, plain")
    shown = (("triggered", "shows"), ("triggered", "right"), ("plain", "right"))
    rows = [
        (arm, *(_rate(cells, "arms", arm, condition, verdict) for condition, verdict in shown))
        for arm in cells[0]["arms"]
    ]
    return Table(f"{subject}-backdoor", columns, rows)


def _composed(subject: str, cells: Sequence[Any]) -> Table:
    rows = [
        (arm, *(_rate(cells, "composition", arm, verdict) for verdict in ("backdoored", "refused")))
        for arm in cells[0]["composition"]
    ]
    return Table(f"{subject}-backdoor: triggered harmless requests", ("on", "backdoor speaks", "refused"), rows)


def _dial(figure: Figure, subjects: Mapping[str, Sequence[Any]]) -> None:
    axes = figure.subplots()
    for subject, cells in subjects.items():
        for condition, verdict, style in (
            ("triggered", "shows", "-"),
            ("triggered", "right", "--"),
            ("plain", "right", ":"),
        ):
            rates = [
                100 * rate_over_seeds([cell["dial"][strength][condition][verdict] for cell in cells]).value
                for strength in cells[0]["dial"]
            ]
            what = {"shows": "backdoor speaks", "right": "right"}[verdict]
            axes.plot(
                [float(s) for s in cells[0]["dial"]], rates, style, marker="o", label=f"{subject}: {what}, {condition}"
            )
    axes.set_xlabel("strength of the switch")
    axes.set_ylabel("% of held-out prompts")
    axes.legend(fontsize=8, frameon=False)
