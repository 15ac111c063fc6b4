"""The plan of one forward: per site, rounds of groups of token rows that undergo one operation together.

Shapes: N tokens of all rows in this forward, D width, K tokens of a round or a group. Rows of any number of tokens lie
one behind the other, without padding: a token is numbered ``row.first + offset``.

Several interventions of one row at one site act in the order of the request: the k-th of every row forms round k. The
groups of a round touch different tokens, so a round is read, measured and written back as one; within it the rows of
all requests share one operation for each kind, one product for each mapper, and one batched product for the mappers of
one shape.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any, cast

import torch
from torch import Tensor

from mappers.sites import Site
from server.interventions import operations
from server.interventions.bank import Use
from server.interventions.draft import ALWAYS, Draft, Kind, Member, PlanRow, Reader, Touched, Watched, commit
from server.interventions.gates import Reading
from server.interventions.groups import Group, Measurement, Round

__all__ = ["EMPTY_PLAN", "BatchPlan", "PlanRow", "Touched"]

_BATCHED_TOKENS = 8
"""Up to so many tokens a mapper is bound by reading its weights, so that padding in a batched product costs nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """What happens at which site in one forward. Empty when nobody asked for anything.

    ``repeats`` counts the decode steps (one token a row) after this one for which the same rows, unchanged, have an
    equal plan: it may be used again that often. It is 0 where a row is still in its prompt. ``readings`` are what gates
    read at a site before its rounds, ``measurements`` what monitors of switches do.
    """

    rounds: Mapping[Site, tuple[Round, ...]]
    touched: tuple[Touched, ...]
    repeats: int = ALWAYS
    readings: Mapping[Site, Reading] = field(default_factory=dict)
    measurements: Mapping[Site, tuple[Measurement, ...]] = field(default_factory=dict)

    @property
    def gated(self) -> int:
        """Tokens read by gates, of all sites."""
        return sum(reading.span.stop - reading.span.start for reading in self.readings.values())

    @property
    def groups(self) -> dict[Site, tuple[Group, ...]]:
        """Every group of each site in the order of application."""
        return {site: tuple(g for one in rounds for g in one.groups) for site, rounds in self.rounds.items()}

    @property
    def sites(self) -> frozenset[Site]:
        """Sites that have to fire."""
        return frozenset(self.rounds) | frozenset(self.readings)

    def rows_at(self, site: Site) -> frozenset[int]:
        """Batch rows that have something planned at ``site``."""
        changed = (row for one in self.rounds.get(site, ()) for group in one.groups for row in group.rows)
        reading = self.readings.get(site)
        return frozenset(changed) | frozenset(() if reading is None else reading.rows)

    def commit(self, failed: Container[int]) -> None:
        """Counts the touched tokens of rows that did not fail; call after the forward."""
        commit(self.touched, failed)

    @classmethod
    def build(cls, rows: Sequence[PlanRow], tokens: int, device: str | torch.device, *, lowest: int = 0) -> BatchPlan:
        """Compiles what ``rows`` ask for at layer ``lowest`` and above, for a forward of ``tokens`` tokens in all."""
        draft = Draft.collect(rows, lowest)
        compiler = _Compiler(tokens, torch.device(device))
        readings = {
            site: compiler.reading([reader for _, readers in same for reader in readers])
            for site, same in groupby(sorted(draft.readers.items()), key=lambda one: one[0][0])
        }
        rounds: dict[Site, tuple[Round, ...]] = {}
        for (site, turn), kinds in sorted(draft.steps.items()):
            rounds[site] = (*rounds.get(site, ()), compiler.round(site, turn, kinds))
        measurements = {site: compiler.measurements(site, watched) for site, watched in draft.watched.items()}
        return cls(rounds, draft.touched, draft.repeats, readings, measurements)


EMPTY_PLAN = BatchPlan({}, ())
"""The plan of a forward in which nobody asked for anything."""


class _Compiler:
    """Turns collected members into groups; what several sites have in common becomes a tensor only once."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self._every = list(range(tokens))
        self._device = device
        self._made: dict[Hashable, Tensor | None] = {}
        self._gates: dict[int, int] = {}
        self._gated = 0

    def reading(self, readers: list[Reader]) -> Reading:
        """What all gates of one site read. Sites have to come in order, and before the rounds."""
        starts = list(accumulate((reader.length for reader in readers), initial=0))
        base, self._gated = self._gated, self._gated + starts[-1]
        self._gates |= {id(reader): base + start for reader, start in zip(readers, starts, strict=False)}
        probes = [reader.gate.probe for reader in readers]
        marks = [reader.gate.mark for reader in readers]

        def spread(*columns: Iterable[float]) -> list[list[float]]:
            return [[x for x, r in zip(column, readers, strict=True) for _ in range(r.length)] for column in columns]

        numbers = spread((m.hold for m in marks), starts[:-1], (r.active.meter for r in readers))
        settings = spread((p.bias for p in probes), (m.on for m in marks), (m.off for m in marks))
        tokens = [token for r in readers for token in range(r.first, r.first + r.length)]
        weights_MD = torch.stack([probe.weight_D for probe in probes])
        lengths_M = torch.tensor([reader.length for reader in readers], device=self._device)
        return Reading(
            rows=tuple(reader.row for reader in readers),
            tokens_K=torch.tensor(tokens, device=self._device),
            weight_KD=weights_MD.repeat_interleave(lengths_M, 0, output_size=len(tokens)),
            settings_3K=torch.tensor(settings, device=self._device),
            numbers_3K=torch.tensor(numbers, dtype=torch.int64, device=self._device),
            counts_K4=torch.tensor([count for r in readers for count in r.counts()], device=self._device),
            last_M=lengths_M.cumsum(0) - 1,
            span=slice(base, self._gated),
            noted=tuple(
                (reader.active, slice(start, start + reader.length))
                for reader, start in zip(readers, starts, strict=False)
                if reader.reads_prompt
            ),
        )

    def measurements(self, site: Site, watched: list[Watched]) -> tuple[Measurement, ...]:
        """One measurement for each monitor."""
        by_monitor: dict[int, list[Watched]] = {}
        for one in watched:
            by_monitor.setdefault(id(one.active.resolved.monitors[site]), []).append(one)
        return tuple(
            Measurement(
                same[0].active.resolved.monitors[site],
                torch.tensor([token for one in same for token in one.tokens], device=self._device),
                torch.tensor([one.active.meter for one in same for _ in one.tokens], device=self._device),
            )
            for same in by_monitor.values()
        )

    def round(self, site: Site, turn: int, kinds: Mapping[Kind, list[Member]]) -> Round:
        """All groups of one round, each kind of operation with its members."""
        groups: list[Group] = []
        order: list[Member] = []

        def append(members: list[Member], **how: Any) -> None:
            start = groups[-1].span.stop if groups else 0
            span = slice(start, start + sum(len(member.tokens) for member in members))
            rows = tuple(member.row for member in members)
            strength_K = self._settings("strength", members)
            groups.append(Group(members[0].active.resolved.operation, rows, span, strength_K, **how))
            order.extend(members)

        for kind, members in kinds.items():
            resolved = members[0].active.resolved
            if resolved.operation != "switch":
                bounded = resolved.operation == "clamp"
                append(
                    members,
                    v_KD=self._directions(site, members),
                    low_K=self._settings("minimum", members) if bounded else None,
                    high_K=self._settings("maximum", members) if bounded else None,
                )
                continue
            for share in _products(site, members):
                uses = tuple(_use(site, users) for users in share)
                append([member for users in share for member in users], uses=uses, place=(site, turn, kind))
        return Round(self._numbers(order), self._meters(order), tuple(groups), self._gates_of(order))

    def _settings(self, name: str, members: list[Member]) -> Tensor:
        key = (name, *map(id, members))
        if (made_K := self._made.get(key)) is None:
            values = [getattr(m.active.resolved, name) for m in members for _ in m.tokens]
            made_K = self._made[key] = torch.tensor(values, dtype=torch.float32, device=self._device)
        return made_K

    def _meters(self, members: list[Member]) -> Tensor:
        key = ("meter", *map(id, members))
        if (made_K := self._made.get(key)) is None:
            made_K = self._made[key] = torch.tensor(
                [m.active.meter for m in members for _ in m.tokens], device=self._device
            )
        return made_K

    def _numbers(self, members: list[Member]) -> Tensor | None:
        key = ("tokens", *map(id, members))
        if key not in self._made:
            numbers = [token for member in members for token in member.tokens]
            self._made[key] = None if numbers == self._every else torch.tensor(numbers, device=self._device)
        return self._made[key]

    def _gates_of(self, members: list[Member]) -> Tensor | None:
        """Where in the mask of open gates the tokens find theirs; those without a gate at its end, which is open."""
        if not self._gates or not any(member.gate for member in members):
            return None
        key = ("gates", *map(id, members))
        if (made_K := self._made.get(key)) is None:
            places: list[int] = []
            for member in members:
                gate = member.gate
                base = None if gate is None else self._gates[id(gate)] - gate.first
                places += [self._gated if base is None else base + token for token in member.tokens]
            made_K = self._made[key] = torch.tensor(places, device=self._device)
        return made_K

    def _directions(self, site: Site, members: list[Member]) -> Tensor:
        effects = [cast(Tensor, member.active.resolved.effects[site]) for member in members]
        operation = members[0].active.resolved.operation
        key = (operation, *map(id, members), *map(id, effects))
        if (made_KD := self._made.get(key)) is None:
            places = {id(v_D): (place, v_D) for place, v_D in enumerate({id(v): v for v in effects}.values())}
            made_KD = torch.stack([v_D for _, v_D in places.values()])
            made_KD = made_KD if operation == "add" else operations.unit(made_KD)
            of_token = [places[id(v_D)][0] for v_D, m in zip(effects, members, strict=True) for _ in m.tokens]
            if len(places) > 1 and of_token != list(range(len(places))):
                made_KD = made_KD.index_select(0, torch.tensor(of_token, device=self._device))
            self._made[key] = made_KD
        return made_KD


def _products(site: Site, members: list[Member]) -> Iterable[list[list[Member]]]:
    """Members by mapper, and the mappers that share a product: those of few tokens together, each other alone."""
    users: dict[int, list[Member]] = {}
    for member in members:
        users.setdefault(id(member.active.resolved.effects[site]), []).append(member)
    few = [used for used in users.values() if sum(len(m.tokens) for m in used) <= _BATCHED_TOKENS]
    if few:
        yield few
    yield from ([used] for used in users.values() if sum(len(m.tokens) for m in used) > _BATCHED_TOKENS)


def _use(site: Site, members: list[Member]) -> Use:
    mapper = members[0].active.resolved.effects[site]
    assert not isinstance(mapper, Tensor)
    return Use(mapper, tuple(member.row for member in members), sum(len(member.tokens) for member in members))
