"""Does a steering vector of one model work in another? (arXiv 2503.04429, sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mappers.dataset import DatasetRow
from mappers.organisms.behaviours import Behaviour
from mappers.organisms.behaviours.ordinary import BACKDOOR
from server.evaluation.experiment import Cell
from server.evaluation.lab import Lab
from server.evaluation.ledger import Figures
from server.evaluation.questions import Questions, Wanted
from server.evaluation.report import Demand, Plot, Section, Table
from server.evaluation.scale import Scale
from server.evaluation.transfers import ARMS, Aim, measure_transfer
from server.evaluation.verdicts import percent, rate_over_seeds
from server.types import Operation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VECTOR_PROMPTS: Final = 120
_TEXTS_SEED: Final = 1_000


@dataclass(frozen=True)
class TransferExperiment:
    """One behaviour's vector over pairs of organisms, source before target; with ``own`` the pairs name models.

    The vector is the difference in means of the conditions ``positive`` and ``negative``, at the prompts' last token
    or, with ``answered``, throughout the wanted answers; it acts on questions under ``asked``. ``inside`` is that of
    :class:`server.evaluation.steering.Trial`. ``near`` demands that mapped comes within that share of native (on all
    pairs but one), and ``apart`` that random stays that share below mapped (on every pair), ``costs`` bounds the
    perplexity under the mapped vector as a multiple of that under the native one; None demands nothing.
    ``most_validation`` and ``most_texts`` are how many prompts the behaviour has.
    """

    name: str
    title: str
    text: str
    behaviour: Behaviour
    positive: str
    negative: str
    asked: str
    wanted: Wanted
    strengths: tuple[float, ...]
    pairs: tuple[tuple[str, str], ...]
    quick_pairs: int = 0
    most_validation: int = 1_000
    most_texts: int = 10_000
    own: bool = False
    ordinary: Behaviour = BACKDOOR
    operation: Operation = "add"
    everywhere: bool = False
    answered: bool = False
    inside: bool = False
    near: float | None = None
    apart: float | None = None
    costs: float | None = None
    version: int = 1

    def cells(self, scale: Scale) -> Sequence[Cell]:
        """One cell a pair and seed."""
        pairs = self.pairs if scale.thorough else self.pairs[: self.quick_pairs]
        kind = "" if self.own else f"-{self.behaviour.kind}"
        models = {f"{s}->{t}": (f"{s}{kind}", f"{t}{kind}") for s, t in pairs}
        return [Cell(pair, seed, models[pair]) for seed in scale.seeds for pair in models]

    def measure(self, lab: Lab, cell: Cell) -> Figures:
        """Picks everything on validation prompts and judges held-out answers of all arms."""
        source, target = (lab.model(name) for name in cell.models)
        scale, seed, behaviour = lab.scale, cell.seed, self.behaviour
        validation = min(scale.validation, self.most_validation)
        positive, negative = (
            [
                DatasetRow(prompt=question.prompt, completion=question.wanted if self.answered else None)
                for question in behaviour.questions("train", seed, _VECTOR_PROMPTS, condition=condition)
            ]
            for condition in (self.positive, self.negative)
        )
        aim = Aim(
            positive,
            negative,
            Questions.of(behaviour, "validation", seed, validation, self.asked),
            Questions.of(behaviour, "test", seed, scale.held_out, self.asked),
            self.wanted,
            self.strengths,
            self.operation,
            self.everywhere,
            Questions.of(self.ordinary, "test", seed, scale.held_out, self.ordinary.plain),
            self.inside,
        )
        texts = (
            self._texts(seed, scale.texts),
            behaviour.rows("validation", _TEXTS_SEED + seed, validation, answer="taught"),
        )
        return measure_transfer(lab, source, target, texts, aim, seed)

    def _texts(self, seed: int, count: int) -> list[DatasetRow]:
        """Exchanges about the behaviour under all conditions, filled up with ordinary ones."""
        own = min(count, self.most_texts)
        rows = self.behaviour.rows("train", _TEXTS_SEED + seed, own, answer="taught")
        if own == count:
            return rows
        others = self.ordinary.questions("train", _TEXTS_SEED + seed, count - own, condition=self.ordinary.plain)
        return rows + [DatasetRow(prompt=one.prompt, completion=one.taught) for one in others]

    def section(self, figures: Mapping[Cell, Any]) -> Section:
        """Rates of every pair, mappers side by side, and how far mapped is from native."""
        pairs = {
            pair: [found for cell, found in figures.items() if cell.subject == pair]
            for pair in dict.fromkeys(cell.subject for cell in figures)
        }
        summary: dict[str, Any] = {
            pair: {arm: rate_over_seeds(_verdicts(c, arm)).value for arm in ARMS} for pair, c in pairs.items()
        }
        file = f"{self.name}.png"
        return Section(
            self.title,
            self.text,
            [_rates(pairs), _costs(pairs), _kinds(pairs)],
            self._demands(summary, pairs),
            [Plot(file, f"{self.title}: share of answers as wanted, by pair", lambda figure: _bars(figure, summary))],
            {self.name: summary},
        )

    def _demands(self, summary: Mapping[str, Mapping[str, float]], pairs: Mapping[str, Sequence[Any]]) -> list[Demand]:
        demands = []
        count = len(summary)
        if self.near is not None:
            near = sum(rates["mapped"] >= rates["native"] - self.near for rates in summary.values())
            needed = max(1, count - 1)
            what = f"{self.name}: mapped within {100 * self.near:.0f} points of native"
            demands.append(Demand(what, f"{needed} of {count} pairs", f"{near} of {count}", near >= needed))
        if self.apart is not None:
            apart = min(rates["mapped"] - rates["random"] for rates in summary.values())
            what, bound = f"{self.name}: random below mapped, every pair", f">= {100 * self.apart:.0f} points"
            demands.append(Demand(what, bound, f"{100 * apart:.0f} points", apart >= self.apart))
        if self.costs is not None:
            ratio = max(_cost(cells) for cells in pairs.values())
            what = f"{self.name}: perplexity under mapped to that under native, worst pair"
            demands.append(Demand(what, f"<= {self.costs:g}", f"{ratio:.3f}", ratio <= self.costs))
        return demands


def _cost(cells: Sequence[Any]) -> float:
    return float(np.mean([cell["perplexity"]["mapped"] / cell["perplexity"]["native"] for cell in cells]))


def _verdicts(cells: Sequence[Any], arm: str, verdict: str = "wanted") -> list[str]:
    return [cell["arms"][arm][verdict] for cell in cells]


def _rates(pairs: Mapping[str, Sequence[Any]]) -> Table:
    others = [(arm, verdict) for verdict in ("right", "shows") for arm in ("native", "mapped")]
    rows = [
        (
            f"{pair}, {len(cells)} seeds",
            ", ".join(sorted({cell["target_site"].rpartition(".")[2] for cell in cells})),
            *(percent(rate_over_seeds(_verdicts(cells, arm))) for arm in ARMS),
            *(percent(rate_over_seeds(_verdicts(cells, arm, verdict)).value) for arm, verdict in others),
        )
        for pair, cells in pairs.items()
    ]
    columns = (
        "source -> target",
        "target layers",
        *ARMS,
        *(f"{'right' if verdict == 'right' else 'behaviour shows'}, {arm}" for arm, verdict in others),
    )
    return Table("Held-out answers as wanted (95 % intervals)", columns, rows)


def _costs(pairs: Mapping[str, Sequence[Any]]) -> Table:
    rows = [
        (
            pair,
            *(percent(rate_over_seeds(_verdicts(cells, arm, "ordinary")).value) for arm in ARMS),
            *(f"{np.mean([cell['perplexity'][arm] for cell in cells]):.3f}" for arm in ARMS),
        )
        for pair, cells in pairs.items()
    ]
    columns = ("source -> target", *(f"right, {arm}" for arm in ARMS), *(f"perplexity, {arm}" for arm in ARMS))
    note = "Ordinary prompts without trigger or prefix; perplexity of the wanted answers to them."
    return Table("What steering costs", columns, rows, note)


def _kinds(pairs: Mapping[str, Sequence[Any]]) -> Table:
    rows = []
    for pair, cells in pairs.items():
        for kind in cells[0]["mapped"]:
            of_kind = [cell["mapped"][kind] for cell in cells]
            rows.append(
                (
                    pair,
                    kind,
                    percent(rate_over_seeds(_verdicts(cells, kind)).value),
                    f"{np.mean([one['fvu'] for one in of_kind]):.3f}",
                    f"{np.mean([one['cosine_to_native'] for one in of_kind]):.2f}",
                    ", ".join(sorted({one["source_site"].rpartition(".")[2] for one in of_kind})),
                    ", ".join(f"{one['strength']:g}" for one in of_kind),
                    f"{sum(cell['picked'] == kind for cell in cells)} of {len(cells)}",
                )
            )
    columns = (
        "source -> target",
        "mapper",
        "as wanted",
        "FVU",
        "cosine to native",
        "source layers",
        "strengths",
        "picked",
    )
    note = "FVU: share of the target's variance that the mapper leaves unexplained, on validation texts."
    return Table("The same by kind of mapper", columns, rows, note)


def _bars(figure: Figure, summary: Mapping[str, Mapping[str, float]]) -> None:
    axes = figure.subplots()
    places = np.arange(len(summary))
    for number, arm in enumerate(ARMS):
        heights = [100 * rates[arm] for rates in summary.values()]
        axes.bar(places + 0.2 * (number - 1.5), heights, width=0.18, label=arm)
    axes.set_xticks(places, [pair.replace("->", "\n-> ") for pair in summary], fontsize=8)
    axes.set_ylabel("answers as wanted, %")
    axes.set_ylim(0, 105)
    axes.legend(ncols=len(ARMS), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
