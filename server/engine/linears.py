"""How the linear layers of a loaded model are computed on a CPU: weights laid out once, at load, for the processor.

Shapes: O outputs, I inputs, ``...I`` any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from server.engine.linear_layers import LinearLayer, read_together

WeightFormat = Literal["native", "int8"]
Product = Callable[[Tensor], Tensor]

_SMALL = 1 << 17
"""Float32 weights up to which a plain product is faster than a oneDNN primitive (288 x 288 at one row: 9 and 17 us)."""
_ROWS = 32
"""Rows that the packed layout is chosen for: as fast as any other at 1 and 8 rows, and the fastest at 32."""
_FEW_ROWS = 64
"""Rows up to which every number has a kernel of its own: so many decode at once, and a copy would cost them most."""
_ROW_STEP = 16
_LEVELS = 127
"""Largest absolute value of a weight or an activation in int8; -128 is not used, so that zero stays in the middle."""
_ZERO = _LEVELS + 1
"""What zero is in the unsigned activations that VNNI multiplies with signed weights."""


class EngineLinear(nn.Module):
    """A linear layer without parameters: its weights live, in the processor's layout, in the product it was made with.

    It can neither be trained nor saved. ``nbytes`` is what its share of the weights takes.
    """

    def __init__(self, product: Product, weight_format: WeightFormat, nbytes: int) -> None:
        super().__init__()
        self.weight_format = weight_format
        self.nbytes = nbytes
        self._product = product

    def forward(self, x_I: Tensor) -> Tensor:
        """``x_I`` of shape ``[..., I]`` becomes ``[..., O]`` of the same dtype. Rows do not see one another."""
        return self._product(x_I)


def install_linears(model: nn.Module, weight_format: WeightFormat = "native") -> None:
    """Replaces linear layers of ``model``, which has to be on the CPU, by :class:`EngineLinear`.

    Layers that read one tensor (query, key and value; gate and up) become one product. ``native`` keeps the weights'
    values. ``int8`` rounds each output channel's weights, and each token's activations, to 255 levels of their own
    range; hidden states stay float32. A head tied to the embeddings gets a copy of them, because the table they are
    looked up in keeps its layout.

    Raises UnsupportedArchitecture where the model cannot run at all.
    """
    groups = read_together(model)
    while groups:  # popped, so that a weight is let go as soon as it is laid out anew
        layers = groups.pop()
        product = linear_product(torch.cat([layer.weight_OI for layer in layers]), _joined_bias(layers), weight_format)
        if product is None:
            continue
        parts = [product]
        if len(layers) > 1:
            shared = _SharedProduct(product, [len(layer.weight_OI) for layer in layers])
            parts = [partial(shared.part, i) for i in range(len(layers))]
        for layer, part in zip(layers, parts, strict=True):
            width = 1 if weight_format == "int8" else layer.weight_OI.element_size()
            setattr(layer.parent, layer.name, EngineLinear(part, weight_format, layer.weight_OI.numel() * width))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of ``model``, those included that are laid out for the processor."""
    laid_out = sum(module.nbytes for module in model.modules() if isinstance(module, EngineLinear))
    return laid_out + sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def has_int8(model: nn.Module) -> bool:
    """Whether linear layers of ``model`` compute in int8."""
    return any(isinstance(module, EngineLinear) and module.weight_format == "int8" for module in model.modules())


def has_onednn() -> bool:
    """Whether this build of torch has the kernels that weights are laid out for."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _joined_bias(layers: Sequence[LinearLayer]) -> Tensor | None:
    if all(layer.bias_O is None for layer in layers):
        return None
    return torch.cat(
        [layer.weight_OI.new_zeros(len(layer.weight_OI)) if layer.bias_O is None else layer.bias_O for layer in layers]
    )


class _SharedProduct:
    """The product of several layers that are given one tensor: computed for the first, handed to each once."""

    def __init__(self, product: Product, sizes: list[int]) -> None:
        self._product = product
        self._sizes = sizes
        self._input: Tensor | None = None
        self._parts: dict[int, Tensor] = {}

    def part(self, index: int, x_I: Tensor) -> Tensor:
        """The outputs of layer ``index``; computed anew for another tensor and when asked for a second time."""
        if x_I is not self._input or index not in self._parts:
            self._input, self._parts = x_I, dict(enumerate(torch.split(self._product(x_I), self._sizes, -1)))
        part_O = self._parts.pop(index)
        if not self._parts:
            self._input = None
        return part_O


def linear_product(weight_OI: Tensor, bias_O: Tensor | None, weight_format: WeightFormat) -> Product | None:
    """The fastest way to compute ``x W^T + b`` here; None where that is torch's own."""
    if weight_format == "int8":
        return _of_few_sizes(int8_product(weight_OI, bias_O))
    if has_onednn():
        supported = weight_OI.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if supported or (weight_OI.dtype == torch.float32 and weight_OI.numel() > _SMALL):
            return _of_few_sizes(packed_product(weight_OI, bias_O))
    return None


def _of_few_sizes(product: Product) -> Product:
    """The same product, computed for a multiple of 16 rows where there are more than 64, as when prompts are read.

    oneDNN compiles a kernel for every number of rows that it has not met, in milliseconds, and keeps a thousand of
    them, in a hundred megabytes and more.
    """

    def padded(x_I: Tensor) -> Tensor:
        rows = x_I.shape[-2] if x_I.dim() > 1 else 1
        spare = -rows % _ROW_STEP
        if rows <= _FEW_ROWS or not spare:
            return product(x_I)
        return product(nn.functional.pad(x_I, (0, 0, 0, spare)))[..., :rows, :]

    return padded


def packed_product(weight_OI: Tensor, bias_O: Tensor | None) -> Product:
    """``x W^T + b`` with the weight in oneDNN's blocked layout, as Inductor lays out frozen weights on a CPU.

    MKL computes a float32 product with few rows on one thread, and a bfloat16 weight is laid out anew in every call.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _ROWS)
    bias_O = None if bias_O is None else bias_O.clone()
    linear = torch.ops.mkldnn._linear_pointwise.default

    def product(x_I: Tensor) -> Tensor:
        y_O: Tensor = linear(x_I, packed, bias_O, "none", [], "")
        return y_O

    return product


def int8_product(weight_OI: Tensor, bias_O: Tensor | None) -> Product:
    """``x W^T + b`` in 8 bits: weights scaled by output channel, activations by row, sums in int32, so exact.

    Because each row has its own scale and integer sums do not depend on their order, a row's result is the same
    whichever rows, NaN included, are computed beside it. A row that holds NaN or an infinity gives no finite number.
    oneDNN's ``qlinear`` (what torchao's quantised graphs are lowered to) knows one scale for all rows: it is given
    rows that are already divided by theirs.
    """
    scale_O = weight_OI.float().abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LEVELS
    rounded_OI = (weight_OI.float() / scale_O[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(rounded_OI, None)
    outputs = len(scale_O)
    zero_O = torch.zeros(outputs, dtype=torch.int32)
    bias_O = None if bias_O is None else bias_O.float()
    half_up = torch.tensor(_ZERO + 0.5)
    linear = torch.ops.onednn.qlinear_pointwise.default

    def product(x_I: Tensor) -> Tensor:
        largest_1 = x_I.abs().amax(-1, keepdim=True)
        # Truncation rounds, because all values are positive. A row of zeros becomes NaN, then an integer, then 0 again.
        x_u8_I = torch.addcdiv(half_up, x_I, largest_1, value=_LEVELS).to(torch.uint8)
        y_O: Tensor = linear(
            x_u8_I, 1 / _LEVELS, _ZERO, packed, scale_O, zero_O, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y_O = y_O.view(*x_I.shape[:-1], outputs)  # without rows, the kernel loses the leading dimensions
        return y_O.mul_(largest_1) if bias_O is None else torch.addcmul(bias_O, y_O, largest_1)

    return product
