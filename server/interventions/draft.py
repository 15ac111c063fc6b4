"""What the rows of a forward ask for, sorted by place and kind: a plan before any tensor is made."""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from mappers.sites import Site
from server.interventions.active import ActiveIntervention
from server.interventions.bank import family_of
from server.interventions.gates import Gate
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


class Reader(NamedTuple):
    """The gate of one intervention of one row: it reads tokens ``first .. first + length`` of the forward.

    Offsets among them say which are to be changed, if it is open, at ``sites`` sites. ``reads_prompt`` tells that the
    first of them is one of the prompt.
    """

    row: int
    active: ActiveIntervention
    first: int
    length: int
    prompt: Sequence[int]
    generated: Sequence[int]
    sites: int
    reads_prompt: bool

    @property
    def gate(self) -> Gate:
        """The gate itself."""
        gate = self.active.resolved.gate
        assert gate is not None
        return gate

    def counts(self) -> list[list[int]]:
        """For each token read what an open gate adds to :class:`server.interventions.meter.GateCounts`."""
        counts = [[1, 0, 0, 0] for _ in range(self.length)]
        for kind, offsets in ((1, self.prompt), (2, self.generated)):
            for offset in offsets:
                counts[offset][kind], counts[offset][3] = 1, self.sites
        return counts


class Watched(NamedTuple):
    """Prompt tokens in the reach of a switch whose distance from what it was trained on is measured."""

    active: ActiveIntervention
    tokens: list[int]


class Member(NamedTuple):
    """One intervention of one row with the tokens it touches, the same at each of its sites, while its gate is open."""

    row: int
    active: ActiveIntervention
    tokens: list[int]
    gate: Reader | None


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """``steps[site, turn][kind]``: who undergoes what, where several interventions of a row at a site take turns.

    ``readers[site, turn]`` are the gates that read a site before that, several of one row in several turns; ``watched``
    the prompt tokens of each site whose distance is measured. ``repeats`` counts the decode steps (one token a row)
    after this one for which the same rows, unchanged, ask for the same. It is 0 where a row with interventions is still
    in its prompt.
    """

    steps: dict[tuple[Site, int], dict[Kind, list[Member]]]
    readers: dict[tuple[Site, int], list[Reader]]
    watched: dict[Site, list[Watched]]
    touched: tuple[Touched, ...]
    repeats: int

    @classmethod
    def collect(cls, rows: Sequence[PlanRow], lowest: int = 0) -> Draft:
        """Sorts the interventions of ``rows`` that act in this forward, at layer ``lowest`` and above."""
        made = cls({}, {}, {}, (), ALWAYS)
        touched: list[Touched] = []
        repeats = ALWAYS
        for row in rows:
            turns: dict[Site, int] = {}
            gates: dict[Site, int] = {}
            for active in row.interventions:
                resolved = active.resolved
                # A strength of 0 means "leave it alone", exactly: not even a rounding of the same value.
                if resolved.strength == 0.0:
                    continue
                repeats = min(repeats, _repeats(row, active))
                offsets = active_offsets(resolved.apply, row.start, row.count, row.prompt_len)
                sites = [site for site in resolved.sites if site.layer >= lowest]
                prompt_left = max(row.prompt_len - row.start, 0)
                in_prompt = sum(offset < prompt_left for offset in offsets) if prompt_left else 0
                gate = None
                if resolved.gate is not None:
                    prompt, generated = offsets[:in_prompt], offsets[in_prompt:]
                    gate = Reader(
                        row.index, active, row.first, row.count, prompt, generated, len(sites), prompt_left > 0
                    )
                    site = gate.gate.mark.site
                    assert site.layer >= lowest, "a row with a gate never resumes above the site that the gate reads"
                    made.readers.setdefault((site, gates.get(site, 0)), []).append(gate)
                    gates[site] = gates.get(site, 0) + 1
                if not offsets or not sites:
                    continue
                if gate is None:
                    touched.append(Touched(row.index, active, in_prompt, len(offsets) - in_prompt, len(sites)))
                member = Member(row.index, active, [row.first + offset for offset in offsets], gate)
                for site in sites:
                    turn = turns.get(site, 0)
                    if len(row.interventions) > 1:
                        turns[site] = turn + 1
                    made._add_member(site, turn, member)
                    if in_prompt and site in resolved.monitors:
                        made.watched.setdefault(site, []).append(Watched(active, member.tokens[:in_prompt]))
        return replace(made, touched=tuple(touched), repeats=repeats)

    def _add_member(self, site: Site, turn: int, member: Member) -> None:
        resolved = member.active.resolved
        effect = resolved.effects[site]
        kind = Kind(resolved.operation, effect.shape if isinstance(effect, Tensor) else family_of(effect))
        self.steps.setdefault((site, turn), {}).setdefault(kind, []).append(member)


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
