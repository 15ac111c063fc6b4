"""The plan of one forward: per site, groups of token rows that undergo one operation together.

Shapes: B batch rows, T tokens a row in this forward, D width, K tokens and V distinct vectors of a group. A token of
the batch is numbered ``row * T + offset``; a row that computes fewer than T is padded in front.

Several interventions of one row at one site act in the order of the request: the k-th of every row forms round k, so
within a round the groups touch different tokens and the rows of all requests share one matrix product a mapper.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mappers.modules import Mapper
from mappers.sites import Site
from mappers.stacked import MapperStack, stack_form
from server.interventions import operations
from server.interventions.active import ActiveIntervention
from server.interventions.positions import active_offsets
from server.types import Operation

_FEW_TOKENS = 8
"""Tokens up to which a mapper's products are small enough to gain from being computed with those of others."""

_FEWEST_STACKED = 4


@dataclass(frozen=True, slots=True)
class PlanRow:
    """The part of one request in this forward: positions ``start .. start + count`` in row ``index`` of the batch."""

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
    sites: int


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
    mapper: Callable[[Tensor], Tensor] | None

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
    rows: set[int] = field(default_factory=set)
    tokens: list[int] = field(default_factory=list)
    meters: list[int] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    effect_of: list[int] = field(default_factory=list)

    def extend(self, row: int, tokens: Sequence[int], active: ActiveIntervention, effect: int) -> None:
        """Adds tokens of a row, to which effect number ``effect`` of the group applies."""
        count, resolved = len(tokens), active.resolved
        self.rows.add(row)
        self.tokens += tokens
        self.meters += [active.meter] * count
        self.strengths += [resolved.strength] * count
        self.lows += [resolved.minimum] * count
        self.highs += [resolved.maximum] * count
        self.effect_of += [effect] * count

    def finish(
        self,
        batch_tokens: int,
        device: torch.device,
        vectors: Sequence[Tensor] = (),
        mapper: Callable[[Tensor], Tensor] | None = None,
    ) -> Group:
        whole = self.tokens == list(range(batch_tokens))
        return Group(
            operation=self.operation,
            rows=frozenset(self.rows),
            tokens_K=None if whole else torch.tensor(self.tokens, device=device),
            meter_K=torch.tensor(self.meters, device=device),
            strength_K=torch.tensor(self.strengths, device=device),
            low_K=torch.tensor(self.lows, device=device),
            high_K=torch.tensor(self.highs, device=device),
            vectors_VD=torch.stack(list(vectors)) if vectors else None,
            vector_of_K=torch.tensor(self.effect_of, device=device) if vectors else None,
            mapper=mapper,
        )


@dataclass(slots=True)
class _Round:
    """What acts at one site in one turn by one operation: shares of rows, each with the effect that applies."""

    operation: Operation
    shares: list[tuple[int, Sequence[int], ActiveIntervention, Tensor | Mapper]] = field(default_factory=list)

    def groups(self, key: Hashable, batch_tokens: int, device: torch.device, bank: MapperBank) -> Iterator[Group]:
        """Vectors together; each mapper that has much to do alone; those that have little together, by their form."""
        if self.operation != "switch":
            yield self._vectors(batch_tokens, device)
            return
        by_mapper: dict[int, _Draft] = {}
        mappers: dict[int, Mapper] = {}
        for row, tokens, active, effect in self.shares:
            assert not isinstance(effect, Tensor)
            mappers[id(effect)] = effect
            by_mapper.setdefault(id(effect), _Draft(self.operation)).extend(row, tokens, active, 0)
        small: dict[Hashable, list[int]] = {}
        for name, draft in by_mapper.items():
            form = stack_form(mappers[name]) if len(draft.tokens) <= _FEW_TOKENS else None
            small.setdefault(name if form is None else form, []).append(name)
        for form, names in small.items():
            if len(names) < _FEWEST_STACKED:
                yield from (by_mapper[name].finish(batch_tokens, device, mapper=mappers[name]) for name in names)
            else:
                drafts = [by_mapper[name] for name in names]
                stack = bank.stack((key, form))
                yield _stacked(drafts, stack, stack.places([mappers[name] for name in names]), batch_tokens, device)

    def _vectors(self, batch_tokens: int, device: torch.device) -> Group:
        draft = _Draft(self.operation)
        vectors: dict[int, tuple[int, Tensor]] = {}
        for row, tokens, active, effect in self.shares:
            assert isinstance(effect, Tensor)
            place, _ = vectors.setdefault(id(effect), (len(vectors), effect))
            draft.extend(row, tokens, active, place)
        return draft.finish(batch_tokens, device, vectors=[v_D for _, v_D in vectors.values()])


def _stacked(
    drafts: Sequence[_Draft], stack: MapperStack, places: Sequence[int], batch_tokens: int, device: torch.device
) -> Group:
    """One group for several mappers: entry ``place * most + i`` of the stack's input is the i-th token of a mapper.

    What pads a mapper with fewer tokens, or stands in a place that nobody asks for, is some token's activation; its
    result is not used.
    """
    joined = _Draft(drafts[0].operation)
    most = max(len(draft.tokens) for draft in drafts)
    source = [0] * (stack.size * most)
    target: list[int] = []
    for draft, place in zip(drafts, places, strict=True):
        for i in range(len(draft.tokens)):
            source[place * most + i] = len(joined.tokens) + i
            target.append(place * most + i)
        joined.rows |= draft.rows
        joined.tokens += draft.tokens
        joined.meters += draft.meters
        joined.strengths += draft.strengths
        joined.lows += draft.lows
        joined.highs += draft.highs
    mapper = _StackedMappers(stack, torch.tensor(source, device=device), torch.tensor(target, device=device), most)
    return joined.finish(batch_tokens, device, mapper=mapper)


@dataclass(frozen=True, slots=True)
class _StackedMappers:
    """The mappers of a stack as one function of a group's tokens."""

    stack: MapperStack
    source_M: Tensor
    target_K: Tensor
    most: int

    def __call__(self, h_KD: Tensor) -> Tensor:
        x_MCD = h_KD.index_select(0, self.source_M).view(-1, self.most, h_KD.shape[-1])
        return self.stack.forward(x_MCD).flatten(0, 1).index_select(0, self.target_K)


class MapperBank:
    """Stacks of mappers that live from plan to plan; :meth:`sweep` frees those that the last plan did not use."""

    def __init__(self) -> None:
        self._stacks: dict[Hashable, MapperStack] = {}
        self._used: set[Hashable] = set()

    def stack(self, key: Hashable) -> MapperStack:
        """The stack of that name."""
        self._used.add(key)
        return self._stacks.setdefault(key, MapperStack())

    def sweep(self) -> None:
        """Frees stacks that were not asked for since the last call."""
        self._stacks = {key: stack for key, stack in self._stacks.items() if key in self._used}
        self._used = set()


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
            touched.intervention.touched(touched.prompt_tokens, touched.generated_tokens, touched.sites)

    @classmethod
    def build(
        cls,
        rows: Sequence[PlanRow],
        tokens: int,
        device: str | torch.device,
        *,
        bank: MapperBank,
        lowest: int = 0,
    ) -> BatchPlan:
        """Compiles the interventions of ``rows``, whose ``tokens`` are packed, at sites from layer ``lowest`` on."""
        rounds: dict[tuple[Site, int, Operation], _Round] = {}
        touched: list[Touched] = []
        for row in rows:
            turns: dict[Site, int] = {}
            for active in row.interventions:
                resolved = active.resolved
                # A strength of 0 means "leave it alone", exactly: not even a rounding of the same value.
                offsets = active_offsets(resolved.apply, row.start, row.count, row.prompt_len)
                sites = [site for site in resolved.sites if site.layer >= lowest]
                if resolved.strength == 0.0 or not offsets or not sites:
                    continue
                in_prompt = sum(row.start + offset < row.prompt_len for offset in offsets)
                touched.append(Touched(row.index, active, in_prompt, len(offsets) - in_prompt, len(sites)))
                numbers = [row.first + offset for offset in offsets]
                for site in sites:
                    turn = turns[site] = turns.get(site, -1) + 1
                    acting = rounds.setdefault((site, turn, resolved.operation), _Round(resolved.operation))
                    acting.shares.append((row.index, numbers, active, resolved.effects[site]))
        groups: dict[Site, tuple[Group, ...]] = {}
        for key, acting in sorted(rounds.items()):
            made = acting.groups(key, tokens, torch.device(device), bank)
            groups[key[0]] = (*groups.get(key[0], ()), *made)
        bank.sweep()
        return cls(groups, tuple(touched))


EMPTY_PLAN = BatchPlan({}, ())
"""The plan of a forward in which nobody asked for anything."""
