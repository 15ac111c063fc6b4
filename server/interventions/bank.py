"""Different mappers of one shape as one batched product: their weights lie stacked on the device while they are used.

Shapes: M stacked mappers, R tokens a mapper (padded), K tokens of a group, S source and D target width, H hidden.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mappers.modules import AffineMapper, AutoencoderMapper, LowRankMapper, Mapper

_IDLE_PLANS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """``tokens`` tokens, one behind the other in a group, of the batch rows ``rows`` that go through ``mapper``."""

    mapper: Mapper
    rows: tuple[int, ...]
    tokens: int


class Family(NamedTuple):
    """What mappers share that may share a product: form, and the shape ``(out, in)`` of each layer's weight."""

    form: type[Mapper]
    residual: bool
    layers: tuple[torch.Size, ...]


def family_of(mapper: Mapper) -> Family | int:
    """The family of a mapper; one of an unknown class may not be stacked and gets a number of its own."""
    if type(mapper) is AutoencoderMapper:
        layers = (mapper.encoder_weight.shape, mapper.decoder_weight.shape)
        return Family(AutoencoderMapper, mapper.config.residual, layers)
    if type(mapper) is LowRankMapper:
        return Family(LowRankMapper, mapper.config.residual, (mapper.down_weight.shape, mapper.up_weight.shape))
    if type(mapper) is AffineMapper:
        return Family(AffineMapper, mapper.config.residual, (mapper.weight.shape,))
    return id(mapper)


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below ``count`` (at least 1): room that need not grow at every step."""
    return 1 << (count - 1).bit_length()


@dataclass(frozen=True, slots=True)
class _Arrangement:
    """Where the tokens of one group go in a batch of ``M x R``, and where they come back from; None is "in order"."""

    stacked: int
    into_MR: Tensor | None
    back_K: Tensor | None


class MapperStack:
    """Weights of mappers of one family, each in a slot of its own; transposed, as batched products like them best.

    With ``capacity`` that many slots are made at once and never move in memory; else there are as many as are needed.
    ``edition`` grows whenever a slot gets another mapper.
    """

    def __init__(self, family: Family, device: str | torch.device, capacity: int = 0) -> None:
        self._capacity = capacity
        self._relu = family.form is AutoencoderMapper
        self._residual = family.residual
        self._held: list[weakref.ref[Mapper] | None] = []
        self._weights: list[Tensor] = []
        for out, source in family.layers:
            for shape in ((source, out), (1, out)):
                self._weights.append(torch.zeros(0, *shape, device=device))
        self.edition = 0
        self._reserve(capacity)

    def place(self, mappers: Sequence[Mapper]) -> list[int]:
        """Slots of ``mappers`` (distinct) below twice their number, and below ``capacity``; only new ones are copied.

        A mapper that is not asked for may lose its slot.
        """
        reach = self._capacity or power_of_two(len(mappers))
        found = {id(held()): slot for slot, held in enumerate(self._held[:reach]) if held is not None and held()}
        slots = {id(mapper): found[id(mapper)] for mapper in mappers if id(mapper) in found}
        missing = [mapper for mapper in mappers if id(mapper) not in slots]
        if missing:
            taken = set(slots.values())
            free = [slot for slot in range(reach) if slot not in taken][: len(missing)]
            self._reserve(power_of_two(max(free) + 1))
            self.edition += 1
            for mapper, slot in zip(missing, free, strict=True):
                self._held[slot] = None  # should the copy raise, the slot holds nobody
                for stacked, weight in zip(self._weights, _parameters(mapper), strict=True):
                    stacked[slot].copy_(weight)
                self._held[slot] = weakref.ref(mapper)
                slots[id(mapper)] = slot
        return [slots[id(mapper)] for mapper in mappers]

    def apply(self, x_MRS: Tensor) -> Tensor:
        """Slot ``m`` maps ``x_MRS[m]``; M may be smaller than the number of slots."""
        weights = [stacked[: len(x_MRS)] for stacked in self._weights]
        y_MRD = _products(x_MRS, *weights[:2])
        if len(weights) == 4:
            y_MRD = _products(F.relu(y_MRD) if self._relu else y_MRD, *weights[2:])
        return x_MRS + y_MRD if self._residual else y_MRD

    def _reserve(self, slots: int) -> None:
        if (more := slots - len(self._held)) > 0:
            self._weights = [torch.cat([old, old.new_zeros(more, *old.shape[1:])]) for old in self._weights]
            self._held += [None] * more


class MapperBank:
    """One stack for each place where different mappers of a family meet; belongs to one thread.

    A stack copies a mapper's weights once, when it first takes part, and keeps them while the live set changes around
    it. Its memory is less than twice that of the most mappers that met there, given back after 256 plans without it.
    """

    def __init__(self) -> None:
        self._stacks: dict[Hashable, MapperStack] = {}
        self._last_used: dict[Hashable, int] = {}
        self._arrangements: dict[Hashable, _Arrangement] = {}
        self._plans = 0

    def begin_plan(self) -> None:
        """Another plan follows: forgets how the groups of the last were arranged, and stacks nobody used for long."""
        self._plans += 1
        self._arrangements.clear()
        for place in [place for place, used in self._last_used.items() if self._plans - used > _IDLE_PLANS]:
            del self._stacks[place], self._last_used[place]

    def apply(self, place: Hashable, uses: Sequence[Use], h_KS: Tensor) -> Tensor:
        """Maps ``h_KS``, whose tokens lie in the order of ``uses``: distinct mappers of one family.

        ``place`` names the stack: the same for a group of a plan and for its successors in later plans.
        """
        stack = self._stacks.get(place)
        if stack is None:
            family = family_of(uses[0].mapper)
            assert isinstance(family, Family)
            stack = self._stacks[place] = MapperStack(family, h_KS.device)
        arrangement = self._arrangements.get(place)
        if arrangement is None:
            arrangement = self._arrangements[place] = _arrange(stack, uses, h_KS.device)
            self._last_used[place] = self._plans
        x_NS = h_KS if arrangement.into_MR is None else h_KS.index_select(0, arrangement.into_MR)
        y_MRD = stack.apply(x_NS.view(arrangement.stacked, -1, x_NS.shape[-1]))
        y_ND = y_MRD.view(-1, y_MRD.shape[-1])
        return y_ND if arrangement.back_K is None else y_ND.index_select(0, arrangement.back_K)


def _arrange(stack: MapperStack, uses: Sequence[Use], device: torch.device) -> _Arrangement:
    slots = stack.place([use.mapper for use in uses])
    stacked, width = max(slots) + 1, max(use.tokens for use in uses)
    into, first = [0] * (stacked * width), 0
    back: list[int] = []
    for slot, use in zip(slots, uses, strict=True):
        start, count = slot * width, use.tokens
        # Padding repeats a token of the same row: what a neighbour holds (NaN, too) stays out of every product.
        into[start : start + width] = [first + min(i, count - 1) for i in range(width)]
        back += range(start, start + count)
        first += count
    in_order = back == list(range(stacked * width))
    return _Arrangement(
        stacked,
        None if in_order else torch.tensor(into, device=device),
        None if in_order else torch.tensor(back, device=device),
    )


def _products(x_MRS: Tensor, weight_MSD: Tensor, bias_M1D: Tensor) -> Tensor:
    stacked, tokens, source = x_MRS.shape
    if tokens > 1 or x_MRS.is_cuda:
        return torch.baddbmm(bias_M1D, x_MRS, weight_MSD)
    # A matrix times one vector is a weighted sum of its rows, and a CPU sums rows nearly as fast as it reads them:
    # a third less time than its batched product takes (float32, 32 x 288 x 288, AMD Zen 5).
    row_MS = torch.arange(stacked * source, device=x_MRS.device).view(stacked, source)
    y_MD = F.embedding_bag(row_MS, weight_MSD.flatten(0, 1), per_sample_weights=x_MRS[:, 0], mode="sum")
    return y_MD[:, None] + bias_M1D


def _parameters(mapper: Mapper) -> list[Tensor]:
    """Weight (transposed) and bias (as a row) of each layer."""
    layers: list[tuple[Tensor, Tensor]]
    match mapper:
        case AutoencoderMapper():
            layers = [(mapper.encoder_weight, mapper.encoder_bias), (mapper.decoder_weight, mapper.decoder_bias)]
        case LowRankMapper():
            down_RS = mapper.down_weight
            layers = [(down_RS, down_RS.new_zeros(len(down_RS))), (mapper.up_weight, mapper.bias)]
        case AffineMapper():
            layers = [(mapper.weight, mapper.bias)]
    return [tensor for weight, bias in layers for tensor in (weight.detach().t(), bias.detach()[None])]
