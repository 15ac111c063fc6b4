"""What a suite leaves behind: one JSON file with every run, and what was demanded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict


class Limits(NamedTuple):
    """What is demanded and what is aimed at."""

    bound: float
    aim: float
    better: Literal["more", "less"] = "more"

    def keeps(self, value: float, limit: float) -> bool:
        """Whether a value is on the good side of a limit."""
        return value >= limit if self.better == "more" else value <= limit


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Machine(_Part):
    """Where, when and on what; ``load_before`` is the load average before the suite."""

    processor: str
    features: list[str]
    cores: int
    memory_gib: float
    threads: int
    load_before: float
    system: str
    python: str
    torch: str
    transformers: str
    commit: str
    date: str


class ContenderResult(_Part):
    """Figures of every repeat and their medians; ``absent`` says why there are none.

    ``start_s`` is from the start of the process to a model that answers. ``equal_tokens`` is the share of tokens before
    the first difference to the cell's first contender, in the first repeat, where the two were asked the same.
    """

    label: str
    absent: str | None = None
    versions: dict[str, str] = {}
    start_s: float | None = None
    equal_tokens: float | None = None
    runs: list[dict[str, float]] = []
    median: dict[str, float] = {}


class Cell(_Part):
    """One piece of work, and what each contender made of it."""

    title: str
    model: str
    contenders: list[ContenderResult]

    def result(self, label: str) -> ContenderResult:
        """The contender of that label; raises KeyError."""
        for contender in self.contenders:
            if contender.label == label:
                return contender
        raise KeyError(label)


class Check(_Part):
    """One demand. ``value`` and what follows from it are None where it could not be measured; ``note`` says why."""

    demand: str
    value: float | None
    bound: float
    aim: float
    better: Literal["more", "less"]
    met: bool | None
    aim_met: bool | None
    ours: str = ""
    against: str = ""
    note: str = ""

    @classmethod
    def of(cls, demand: str, value: float | None, limits: Limits, **details: str) -> Check:
        """Compares a value with its limits."""
        met, aim_met = (None if value is None else limits.keeps(value, limit) for limit in (limits.bound, limits.aim))
        return cls(demand=demand, value=value, met=met, aim_met=aim_met, **limits._asdict(), **details)


class Report(_Part):
    """One suite. ``quick`` figures prove that it runs, and nothing about speed. ``complete`` is False until its end."""

    suite: str
    quick: bool
    repeats: int
    seconds: float
    complete: bool
    machine: Machine
    cells: list[Cell] = []
    checks: list[Check] = []
    notes: list[str] = []

    def write(self, folder: Path) -> Path:
        """Writes ``<suite>.json`` and returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.suite}.json"
        file.write_text(self.model_dump_json(indent=1) + "\n")
        return file
