"""Several mappers of one form, computed together: one batched product where each alone would be a small one.

Shapes: M mappers, C activations for each, S = d_source, D = d_target, H = hidden.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mappers.modules import AffineMapper, AutoencoderMapper, Mapper


def stack_form(mapper: Mapper) -> Hashable | None:
    """Mappers of equal form can be stacked; None for one that only its own ``forward`` knows how to compute."""
    if type(mapper) not in (AffineMapper, AutoencoderMapper) or "forward" in mapper.__dict__:
        return None
    parameters = tuple((name, tuple(p.shape), p.dtype, p.device) for name, p in mapper.named_parameters())
    return type(mapper), mapper.config.residual, parameters


class MapperStack:
    """Parameters of mappers of one form, side by side; a mapper keeps its place as long as it is asked for.

    So that a request which comes or goes costs the copy of one mapper, not of all.
    """

    def __init__(self) -> None:
        self._mappers: list[Mapper] = []
        self._held: dict[str, Tensor] = {}

    def places(self, wanted: Sequence[Mapper]) -> list[int]:
        """The place of each of ``wanted``, distinct and of one form; others lose theirs where room is needed."""
        index = {id(mapper): place for place, mapper in enumerate(self._mappers)}
        kept = {id(mapper) for mapper in wanted}
        free = [place for place, mapper in enumerate(self._mappers) if id(mapper) not in kept]
        if len(self._mappers) > 2 * len(wanted):
            self._mappers, index, free = [], {}, []
        for mapper in wanted:
            if id(mapper) in index:
                continue
            place = free.pop() if free else len(self._mappers)
            self._mappers[place : place + 1] = [mapper]
            index[id(mapper)] = place
            self._write(place, mapper)
        return [index[id(mapper)] for mapper in wanted]

    @property
    def size(self) -> int:
        """Places, taken or left behind."""
        return len(self._mappers)

    def forward(self, x_MCS: Tensor) -> Tensor:
        """Maps ``(M, C, d_source)``, entry m by the mapper in place m, to ``(M, C, d_target)`` of the mappers' dtype.

        No entry sees another.
        """
        mapper = self._mappers[0]
        if isinstance(mapper, AutoencoderMapper):
            code_MCH = self._linear(x_MCS, "encoder_weight", "encoder_bias").relu_()
            y_MCD = self._linear(code_MCH, "decoder_weight", "decoder_bias")
        else:
            y_MCD = self._linear(x_MCS, "weight", "bias")
        return x_MCS + y_MCD if mapper.config.residual else y_MCD

    def _linear(self, x_MCS: Tensor, weight: str, bias: str) -> Tensor:
        """Weights on the left, and the right side as a transposed view: products of another layout are ten times slower
        on a CPU where there is one activation for each mapper.
        """
        size = len(x_MCS)
        x_MSC = x_MCS.clone(memory_format=torch.contiguous_format).transpose(1, 2)
        return torch.baddbmm(self._held[bias][:size, :, None], self._held[weight][:size], x_MSC).transpose(1, 2)

    def _write(self, place: int, mapper: Mapper) -> None:
        for name, parameter in mapper.named_parameters():
            held = self._held.get(name)
            if held is None or place >= len(held):
                grown = parameter.new_zeros(max(4, 2 * place), *parameter.shape)
                if held is not None:
                    grown[: len(held)] = held
                held = self._held[name] = grown
            held[place] = parameter
