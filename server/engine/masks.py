"""Attention masks of rows with different lengths, for every attention kind of the model.

Shapes: B rows, Q new tokens a row, T columns attended.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AttentionMasks:
    """Builds the additive masks ``(B, 1, Q, T)`` a model expects: one tensor, or one for each attention kind."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        text_config = config.get_text_config(decoder=True)
        kinds = tuple(dict.fromkeys(getattr(text_config, "layer_types", None) or ()))
        window = getattr(text_config, "sliding_window", None)
        if not kinds:
            kinds = ("sliding_attention",) if window else ("full_attention",)
        self._kinds = kinds
        self._window = int(window) if window else None
        self._dtype = dtype

    def build(self, positions_BQ: Tensor, attended: int) -> Tensor | dict[str, Tensor]:
        """Each query sees the columns up to its own position, or the last ``sliding_window`` of them."""
        columns_T = torch.arange(attended, device=positions_BQ.device)
        distance_BQT = positions_BQ[:, :, None] - columns_T
        masks = {kind: self._mask(kind, distance_BQT) for kind in self._kinds}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, kind: str, distance_BQT: Tensor) -> Tensor:
        hidden_BQT = distance_BQT < 0
        if kind == "sliding_attention" and self._window is not None:
            hidden_BQT |= distance_BQT >= self._window
        mask_BQT = torch.zeros(distance_BQT.shape, dtype=self._dtype, device=distance_BQT.device)
        return mask_BQT.masked_fill_(hidden_BQT, torch.finfo(self._dtype).min)[:, None]
