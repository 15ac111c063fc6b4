"""Runs the upper blocks of a model alone, on outputs of a lower block that were kept, and keeps such outputs.

Shapes: N packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import Tensor

from mappers.architectures import DecoderStack


class BlockGates:
    """Stands in for ``forward`` of every block, put there once when the engine starts.

    Without orders it calls the block. The stock forward around the blocks (embeddings, positions, final norm, head) is
    never changed, so this works for every architecture whose blocks pass one hidden state on.
    """

    def __init__(self, stack: DecoderStack) -> None:
        self._stack = stack
        self._skipped = 0
        self._resumed_1ND: Tensor | None = None
        self._kept_layers: Collection[int] = ()
        self._kept_1ND: dict[int, Tensor] = {}
        self._as_tuple = [False] * stack.layers
        self._own = [block.__dict__.get("forward") for block in stack.blocks]
        for layer, block in enumerate(stack.blocks):
            block.forward = partial(self._forward, layer, block.forward)

    def begin(self, keep: Collection[int], skipped: int = 0, resumed_1ND: Tensor | None = None) -> None:
        """Orders for the forward that follows: outputs of the layers in ``keep`` are kept, the lowest ``skipped``
        blocks do not run, and ``resumed_1ND`` stands for the output of the highest of them.
        """
        self._kept_layers, self._skipped, self._resumed_1ND = keep, skipped, resumed_1ND

    def end(self) -> dict[int, Tensor]:
        """Ends the orders; returns the outputs that were kept, before any intervention at their site."""
        self._kept_layers, self._skipped, self._resumed_1ND = (), 0, None
        kept_1ND, self._kept_1ND = self._kept_1ND, {}
        return kept_1ND

    def remove(self) -> None:
        """Gives the blocks their own ``forward`` back."""
        for block, own in zip(self._stack.blocks, self._own, strict=True):
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own

    def _forward(self, layer: int, forward: Callable[..., Any], hidden_1ND: Tensor, *args: Any, **kwargs: Any) -> Any:
        if layer < self._skipped:
            at_site = layer == self._skipped - 1
            out_1ND = self._resumed_1ND if at_site else hidden_1ND
            return (out_1ND,) if self._as_tuple[layer] else out_1ND
        output = forward(hidden_1ND, *args, **kwargs)
        self._as_tuple[layer] = isinstance(output, tuple)
        if layer in self._kept_layers:
            self._kept_1ND[layer] = output[0] if isinstance(output, tuple) else output
        return output
