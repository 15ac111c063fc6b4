"""What the rows of a forward ask for, sorted by place and kind: a plan before any tensor is made."""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mappers.sites import Site
from server.interventions.active import ActiveIntervention
from server.interventions.bank import family_of
from server.interventions.positions import active_offsets, next_change
from server.types import Operation

ALWAYS = 2**63


@dataclass(frozen=True, slots=True, eq=False)
class PlanRow:
    """The part of one request in a forward: row ``index`` computes positions ``start .. start + count``.

    ``first`` is the number of its first token among all tokens of the forward.
    """

    index: int
    first: int
    start: int
    count: int
    prompt_len: int
    interventions: Sequence[ActiveIntervention]


class Touched(NamedTuple):
    """Tokens that one intervention touches in this forward, to be counted once the forward has succeeded."""

    row: int
    intervention: ActiveIntervention
    prompt_tokens: int
    generated_tokens: int
    sites: int


class Kind(NamedTuple):
    """What interventions have in common that are computed together: ``form`` is a shape or a family of mappers."""

    operation: Operation
    form: Hashable


class Member(NamedTuple):
    """One intervention of one row with the tokens it touches, the same at each of its sites."""

    row: int
    active: ActiveIntervention
    tokens: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """``steps[site, turn][kind]``: who undergoes what, where several interventions of a row at a site take turns.

    ``repeats`` counts the decode steps (one token a row) after this one for which the same rows, unchanged, ask for
    the same. It is 0 where a row with interventions is still in its prompt.
    """

    steps: dict[tuple[Site, int], dict[Kind, list[Member]]]
    touched: tuple[Touched, ...]
    repeats: int

    @classmethod
    def collect(cls, rows: Sequence[PlanRow], lowest: int = 0) -> Draft:
        """Sorts the interventions of ``rows`` that act in this forward, at layer ``lowest`` and above."""
        steps: dict[tuple[Site, int], dict[Kind, list[Member]]] = {}
        touched: list[Touched] = []
        repeats = ALWAYS
        for row in rows:
            turns: dict[Site, int] = {}
            for active in row.interventions:
                resolved = active.resolved
                # A strength of 0 means "leave it alone", exactly: not even a rounding of the same value.
                if resolved.strength == 0.0:
                    continue
                repeats = min(repeats, _repeats(row, active))
                offsets = active_offsets(resolved.apply, row.start, row.count, row.prompt_len)
                sites = [site for site in resolved.sites if site.layer >= lowest]
                if not offsets or not sites:
                    continue
                prompt_left = row.prompt_len - row.start
                in_prompt = sum(offset < prompt_left for offset in offsets) if prompt_left > 0 else 0
                touched.append(Touched(row.index, active, in_prompt, len(offsets) - in_prompt, len(sites)))
                member = Member(row.index, active, [row.first + offset for offset in offsets])
                for site in sites:
                    turn = turns.get(site, 0)
                    if len(row.interventions) > 1:
                        turns[site] = turn + 1
                    effect = resolved.effects[site]
                    kind = Kind(resolved.operation, effect.shape if isinstance(effect, Tensor) else family_of(effect))
                    steps.setdefault((site, turn), {}).setdefault(kind, []).append(member)
        return cls(steps, tuple(touched), repeats)


def commit(touched: Sequence[Touched], failed: Container[int]) -> None:
    """Counts the touched tokens of rows that did not fail."""
    for row, intervention, prompt_tokens, generated_tokens, sites in touched:
        if row not in failed:
            intervention.touched(prompt_tokens, generated_tokens, sites)


def _repeats(row: PlanRow, active: ActiveIntervention) -> int:
    generated = row.start - row.prompt_len
    if row.count != 1 or generated < 0:
        return 0
    change = next_change(active.resolved.apply.generation, generated)
    return ALWAYS if change is None else change - generated - 1
