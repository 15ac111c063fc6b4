"""Measures cells: contenders in turn, repeat by repeat, forwards and backwards; and compares what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks.contenders import Spec
from benchmarks.figures import Figures, agreement, best, figures, medians, paired_ratio
from benchmarks.models import Model, model_at, random_llama
from benchmarks.pool import CHECKOUT, ContenderFailed, Worker
from benchmarks.report import Cell, Check, ContenderResult, Limits, Report
from benchmarks.workload import RequestTrace, Work
from mappers.organisms.catalogue import organism_path

T = TypeVar("T")

CACHE = CHECKOUT / ".bench-cache"
RESULTS = CHECKOUT / "benchmarks" / "results"


@dataclass(frozen=True)
class Options:
    """How to measure. ``quick`` proves that everything runs, on tiny models.

    ``models`` holds ``stories260K`` and ``babyllama-105``, ``text`` is a file of stories for them.
    """

    quick: bool = False
    repeats: int = 5
    threads: int = 2
    models: Path | None = None
    text: Path | None = None
    cache: Path = CACHE
    out: Path = RESULTS


@dataclass(frozen=True)
class Entry:
    """One contender's line in a cell: ``work`` gives the work of a repeat."""

    spec: Spec
    work: Callable[[int], Work]
    label: str = ""

    @property
    def name(self) -> str:
        """The label in tables."""
        return self.label or self.spec.label


@dataclass
class Bench:
    """One suite's run: fills ``report``, and tells ``changed`` of each part that came in."""

    options: Options
    report: Report
    changed: Callable[[Cell | Check | str], None]
    _workers: dict[str, Worker | ContenderFailed] = field(default_factory=dict)

    def pick(self, full: T, quick: T) -> T:
        """The value for a full or for a quick run."""
        return quick if self.options.quick else full

    def llama(self, shape: str) -> Model:
        """The Llama of random weights; a quick run takes the tiny one whatever was asked for."""
        return random_llama(self.pick(shape, "tiny"), self.options.cache)

    def trained(self, name: str) -> Model | None:
        """A small trained model from the folder that the operator named, or None with a note why it is left out."""
        folder = self.options.models and self.options.models / name
        if folder is None or not (folder / "config.json").exists():
            self.note(f"{name} left out: give its folder's parent with --models or INTERLOCK_BENCH_MODELS")
            return None
        return model_at(folder)

    def text(self) -> str | None:
        """The text that the operator named, or None with a note why what needs it is left out."""
        if self.options.text is None:
            self.note("no text to read: give a file with --text or INTERLOCK_BENCH_TEXT")
            return None
        return self.options.text.read_text(encoding="utf-8")

    def organism(self, name: str) -> Model:
        """A model with planted behaviour that the repository ships."""
        return model_at(organism_path(name))

    def note(self, text: str) -> None:
        """Records something that readers of the figures should know."""
        self.report.notes.append(text)
        self.changed(text)

    @contextmanager
    def workers(self) -> Iterator[None]:
        """Processes started inside are kept from cell to cell, and ended with the block."""
        try:
            yield
        finally:
            for worker in self._workers.values():
                if isinstance(worker, Worker):
                    worker.close()
            self._workers.clear()

    def fresh_worker(self, spec: Spec, model: Model) -> Worker:
        """A new process of a contender, for the caller to close; raises ContenderFailed."""
        log = self.options.cache / "logs" / f"{spec.label}, {model.name}.log".replace(" ", "_")
        return Worker(spec, model.path, self.options.threads, log)

    def cell(self, title: str, model: Model, entries: Sequence[Entry], repeats: int | None = None) -> Cell:
        """Measures entries in turn; the first one's tokens are what others' are compared with."""
        results = {entry.name: ContenderResult(label=entry.name) for entry in entries}
        traces: dict[str, list[RequestTrace]] = {}
        for entry in entries:
            self._attempt(entry, model, entry.work(-1).warm_up(), results[entry.name])
        rounds = self.pick(repeats or self.options.repeats, 1)
        for repeat in range(rounds):
            for entry in entries if repeat % 2 == 0 else reversed(entries):
                result = results[entry.name]
                if result.absent is None and (measured := self._attempt(entry, model, entry.work(repeat), result)):
                    found, peak_rss_mib = measured
                    result.runs.append(figures(found) | {"peak_rss_mib": peak_rss_mib})
                    traces.setdefault(entry.name, found)
        for entry in entries:
            result = results[entry.name]
            result.median = medians(result.runs)
            if result.runs and results[entries[0].name].runs:
                result.equal_tokens = agreement(_comparable(entries[0], entry, traces))
        return self.add(Cell(title=title, model=model.name, contenders=list(results.values())))

    def add(self, cell: Cell) -> Cell:
        """Takes a finished cell into the report."""
        self.report.cells.append(cell)
        self.changed(cell)
        return cell

    def timed(
        self, title: str, model: str, contenders: dict[str, Callable[[int], Figures]], repeats: int | None = None
    ) -> Cell:
        """Measures functions instead of workers, in turn; each gets the number of the repeat."""
        results = {label: ContenderResult(label=label) for label in contenders}
        for repeat in range(self.pick(repeats or self.options.repeats, 1)):
            for label in contenders if repeat % 2 == 0 else reversed(contenders):
                if results[label].absent is None:
                    try:
                        results[label].runs.append(contenders[label](repeat))
                    except ContenderFailed as error:
                        results[label] = ContenderResult(label=label, absent=str(error))
        for result in results.values():
            result.median = medians(result.runs)
        return self.add(Cell(title=title, model=model, contenders=list(results.values())))

    def compare(
        self,
        demand: str,
        cell: Cell,
        ours: Sequence[str],
        against: Sequence[str],
        limits: Limits,
        figure: str = "tokens_per_second",
        note: str = "",
    ) -> None:
        """Checks the ratio of our best to the peers' best, as the median over the repeats' ratios."""
        found = {result.label: result.median for result in cell.contenders}
        mine = best({label: found[label] for label in ours}, figure)
        other = best({label: found[label] for label in against}, figure)
        if mine is None or other is None:
            missing = ours if mine is None else against
            reasons = "; ".join(f"{label}: {cell.result(label).absent or 'no such figure'}" for label in missing)
            self.check(Check.of(demand, None, limits, note=reasons))
            return
        ratio = paired_ratio(cell.result(mine).runs, cell.result(other).runs, figure)
        self.check(Check.of(demand, round(ratio, 4), limits, ours=mine, against=other, note=note))

    def check(self, check: Check) -> None:
        """Takes a finished check into the report."""
        self.report.checks.append(check)
        self.changed(check)

    def _attempt(
        self, entry: Entry, model: Model, work: Work, result: ContenderResult
    ) -> tuple[list[RequestTrace], float] | None:
        """Runs the work, or writes down why that is not possible: then the entry's runs so far do not count."""
        key = f"{entry.spec.environment} {entry.spec.module} {sorted(entry.spec.options.items())} {model.path}"
        try:
            worker = self._workers.get(key)
            if worker is None:
                worker = self._workers[key] = self.fresh_worker(entry.spec, model)
            if isinstance(worker, ContenderFailed):
                raise worker
            result.versions, result.start_s = worker.hello["versions"], round(worker.start_s, 2)
            return worker.run(work)
        except ContenderFailed as error:
            self._workers[key] = error
            result.absent, result.runs = str(error), []
            return None


def _comparable(
    first: Entry, other: Entry, traces: Mapping[str, Sequence[RequestTrace]]
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Answers to equal prompts; where only one of the two can intervene, to those for which nothing was asked."""
    works = zip(first.work(0).requests, other.work(0).requests, strict=False)
    for (asked, same), a, b in zip(works, traces[first.name], traces[other.name], strict=False):
        alike = first.spec.intervenes == other.spec.intervenes or not (asked.interventions or same.interventions)
        if asked.prompt == same.prompt and alike:
            yield a.tokens, b.tokens
