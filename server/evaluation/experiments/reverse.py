"""The reverse switch: does a mapper give a base model what fine-tuning taught? (arXiv 2503.04429)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mappers.loading import LoadedModel
from mappers.organisms.behaviours.medicine import MEDICINE
from mappers.organisms.behaviours.ordinary import BACKDOOR
from mappers.sites import Site
from server.evaluation.answering import Asked, switched
from server.evaluation.experiment import Cell
from server.evaluation.lab import Lab
from server.evaluation.ledger import Figures
from server.evaluation.patched import patched
from server.evaluation.questions import Questions
from server.evaluation.report import Demand, Section, Table
from server.evaluation.scale import Scale
from server.evaluation.switches import OURS, answered_by, fit_switch
from server.evaluation.verdicts import percent, rate_over_seeds, share
from server.interventions.catalog import ResolvedIntervention

_SUBJECT: Final = "llama-small"
_RECIPE: Final = replace(OURS, label="wide residual autoencoder", steps=1400, hidden_factor=8, batch_size=32)
_ON: Final = "switch on"
_TEXT: Final = """\
A switch on the *base* model, trained to say what the fine-tuned model says about an invented pharmacopoeia: by a rule,
so that held-out combinations of patient, symptom and severity can be worked out, and on ordinary prompts: residual
autoencoders at every site, eight times as wide as the model. *Share of the gain* is the rise in right prescriptions as
a share of what fine-tuning brought. *True activations* continues the fine-tuned model's own activations of the middle
site in the base model. The paper reports 7 % for its mapper and 13 % for the true patch."""


@dataclass(frozen=True)
class ReverseExperiment:
    """One organism, base to skilled."""

    name: str = "reverse"
    version: int = 3

    def cells(self, scale: Scale) -> Sequence[Cell]:
        """One cell a seed."""
        return [Cell(_SUBJECT, seed, (f"{_SUBJECT}-base", f"{_SUBJECT}-skilled")) for seed in scale.seeds]

    def measure(self, lab: Lab, cell: Cell) -> Figures:
        """Trains the switch and asks held-out prescriptions and ordinary prompts under every arm."""
        base, skilled = (lab.model(name) for name in cell.models)
        sites, seed, count = base.stack.sites, cell.seed, 2 * lab.scale.switch_prompts
        prompts = [question.prompt for question in MEDICINE.questions("train", seed, count, condition="asked")]
        prompts += [question.prompt for question in BACKDOOR.questions("train", seed, count // 4, condition="plain")]
        exchanges = answered_by(skilled, prompts, lab.max_tokens, lab.report)
        switch = (switched(fit_switch(_RECIPE, base, skilled, sites, exchanges, seed, lab.report)),)
        middle = patched(base, skilled, Site(len(sites) // 2))
        arms: dict[str, Any] = {
            "base": _measured(lab, base, seed),
            "fine-tuned": _measured(lab, skilled, seed),
            "true activations, middle site": _measured(lab, middle, seed),
            _ON: _measured(lab, base, seed, switch),
        }
        return {"arms": arms}

    def section(self, figures: Mapping[Cell, Any]) -> Section:
        """Rates and the share of the gain by arm."""
        cells = list(figures.values())
        rows = [
            (
                arm,
                percent(rate_over_seeds([cell["arms"][arm]["skill"] for cell in cells])),
                percent(_mean([_share_of_gain(cell, arm) for cell in cells])),
                percent(rate_over_seeds([cell["arms"][arm]["ordinary"] for cell in cells])),
            )
            for arm in cells[0]["arms"]
        ]
        columns = ("arm", "right prescriptions", "share of the gain", "right, ordinary prompts")
        gain = _mean([_share_of_gain(cell, _ON) for cell in cells])
        demand = Demand("reverse switch: share of the fine-tuning gain", ">= 90 %", percent(gain), gain >= 0.9)
        table = Table(f"{_SUBJECT}: held-out prescriptions", columns, rows)
        return Section("The reverse switch", _TEXT, [table], [demand], summary={"reverse": {"share_of_gain": gain}})


def _measured(lab: Lab, loaded: LoadedModel, seed: int, arm: tuple[ResolvedIntervention, ...] = ()) -> Figures:
    count = lab.scale.held_out
    return {
        "skill": _ask(lab, loaded, Questions.of(MEDICINE, "test", seed, count, MEDICINE.elicits), arm),
        "ordinary": _ask(lab, loaded, Questions.of(BACKDOOR, "test", seed, count, "plain"), arm),
    }


def _ask(lab: Lab, loaded: LoadedModel, questions: Questions, arm: tuple[ResolvedIntervention, ...]) -> str:
    with lab.answering(loaded) as answerer:
        texts = answerer.answers([Asked(prompt, arm) for prompt in questions.prompts], max_tokens=lab.max_tokens)
    return questions.verdicts("right", texts)


def _share_of_gain(cell: Any, arm: str) -> float:
    low, high, reached = (share(cell["arms"][name]["skill"]) for name in ("base", "fine-tuned", arm))
    return (reached - low) / (high - low) if high > low else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
