"""The plan of one forward: per site, groups of token rows that undergo one operation together.

Shapes: N tokens of all rows in this forward, D width, K tokens and V distinct vectors of a group. Rows of any number
of tokens lie one behind the other, without padding: a token is numbered ``row.first + offset``.

Several interventions of one row at one site act in the order of the request: the k-th of every row forms round k, so
within a round the groups touch different tokens and the rows of all requests share one matrix product a mapper.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mappers.modules import Mapper
from mappers.sites import Site
from server.interventions import operations
from server.interventions.active import ActiveIntervention
from server.interventions.positions import active_offsets
from server.types import Operation


@dataclass(frozen=True, slots=True)
class PlanRow:
    """The part of one request in this forward: row ``index`` of the batch computes positions ``start .. start + count``.

    ``first`` is the number of its first token among all tokens of the forward.
    """

    index: int
    first: int
    start: int
    count: int
    prompt_len: int
    interventions: Sequence[ActiveIntervention]


@dataclass(frozen=True, slots=True)
class Touched:
    """Tokens that one intervention touches in this forward, to be counted once the forward has succeeded."""

    row: int
    intervention: ActiveIntervention
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Group:
    """Tokens of one site that undergo one operation in one round. ``tokens_K`` is None where that is every token."""

    operation: Operation
    rows: frozenset[int]
    tokens_K: Tensor | None
    meter_K: Tensor
    strength_K: Tensor
    low_K: Tensor
    high_K: Tensor
    vectors_VD: Tensor | None
    vector_of_K: Tensor | None
    mapper: Mapper | None

    def compute(self, h_KD: Tensor) -> Tensor:
        """The new activations (float32) of the group's tokens."""
        if self.mapper is not None:
            return operations.switch(h_KD, self.mapper, self.strength_K)
        assert self.vectors_VD is not None
        assert self.vector_of_K is not None
        v_KD = self.vectors_VD.index_select(0, self.vector_of_K)
        if self.operation == "add":
            return operations.add(h_KD, v_KD, self.strength_K)
        if self.operation == "ablate":
            return operations.ablate(h_KD, v_KD, self.strength_K)
        return operations.clamp(h_KD, v_KD, self.strength_K, self.low_K, self.high_K)


@dataclass(slots=True)
class _Draft:
    """A group being collected on the host."""

    operation: Operation
    mapper: Mapper | None
    rows: set[int] = field(default_factory=set)
    tokens: list[int] = field(default_factory=list)
    meters: list[int] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    vector_of: list[int] = field(default_factory=list)
    vectors: dict[int, tuple[int, Tensor]] = field(default_factory=dict)

    def extend(self, row: int, tokens: list[int], active: ActiveIntervention, site: Site) -> None:
        count, resolved, effect = len(tokens), active.resolved, active.resolved.effects[site]
        self.rows.add(row)
        self.tokens += tokens
        self.meters += [active.meter] * count
        self.strengths += [resolved.strength] * count
        self.lows += [resolved.minimum] * count
        self.highs += [resolved.maximum] * count
        if isinstance(effect, Tensor):
            place, _ = self.vectors.setdefault(id(effect), (len(self.vectors), effect))
            self.vector_of += [place] * count

    def finish(self, batch_tokens: int, device: torch.device) -> Group:
        whole = self.tokens == list(range(batch_tokens))
        vectors = [v_D for _, v_D in self.vectors.values()]
        return Group(
            operation=self.operation,
            rows=frozenset(self.rows),
            tokens_K=None if whole else torch.tensor(self.tokens, device=device),
            meter_K=torch.tensor(self.meters, device=device),
            strength_K=torch.tensor(self.strengths, device=device),
            low_K=torch.tensor(self.lows, device=device),
            high_K=torch.tensor(self.highs, device=device),
            vectors_VD=torch.stack(vectors) if vectors else None,
            vector_of_K=torch.tensor(self.vector_of, device=device) if vectors else None,
            mapper=self.mapper,
        )


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What happens at which site in one forward. Empty when nobody asked for anything."""

    groups: Mapping[Site, tuple[Group, ...]]
    touched: tuple[Touched, ...]

    @property
    def sites(self) -> frozenset[Site]:
        """Sites that have to fire."""
        return frozenset(self.groups)

    def rows_at(self, site: Site) -> frozenset[int]:
        """Batch rows that have something planned at ``site``."""
        return frozenset().union(*(group.rows for group in self.groups[site]))

    def commit(self, failed: Container[int]) -> None:
        """Counts the touched tokens of rows that did not fail; call after the forward."""
        for touched in (t for t in self.touched if t.row not in failed):
            touched.intervention.prompt_tokens += touched.prompt_tokens
            touched.intervention.generated_tokens += touched.generated_tokens

    @classmethod
    def build(cls, rows: Sequence[PlanRow], tokens: int, device: str | torch.device) -> BatchPlan:
        """Compiles the interventions of ``rows`` for a forward of ``tokens`` tokens in all."""
        drafts: dict[tuple[Site, int, Operation, int], _Draft] = {}
        touched: list[Touched] = []
        for row in rows:
            rounds: dict[Site, int] = {}
            for active in row.interventions:
                resolved = active.resolved
                # A strength of 0 means "leave it alone", exactly: not even a rounding of the same value.
                offsets = active_offsets(resolved.apply, row.start, row.count, row.prompt_len)
                if resolved.strength == 0.0 or not offsets:
                    continue
                in_prompt = sum(row.start + offset < row.prompt_len for offset in offsets)
                touched.append(Touched(row.index, active, in_prompt, len(offsets) - in_prompt))
                chosen = [row.first + offset for offset in offsets]
                for site in resolved.sites:
                    turn = rounds.get(site, 0)
                    rounds[site] = turn + 1
                    effect = resolved.effects[site]
                    mapper = None if isinstance(effect, Tensor) else effect
                    key = (site, turn, resolved.operation, id(mapper))
                    drafts.setdefault(key, _Draft(resolved.operation, mapper)).extend(row.index, chosen, active, site)
        groups: dict[Site, tuple[Group, ...]] = {}
        for (site, *_), draft in sorted(drafts.items(), key=lambda item: item[0][:2]):
            groups[site] = (*groups.get(site, ()), draft.finish(tokens, torch.device(device)))
        return cls(groups, tuple(touched))


EMPTY_PLAN = BatchPlan({}, ())
"""The plan of a forward in which nobody asked for anything."""
