"""The shape of a mapper, without tensors, so that a registry can check one without torch."""

from __future__ import annotations

from math import isqrt, prod
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MapperKind = Literal["ridge", "affine", "procrustes", "low_rank", "autoencoder"]

MAX_WIDTH = 65_536


class MapperConfig(BaseModel):
    """Kind and widths of a mapper.

    ``ridge``, ``procrustes`` and ``affine`` are all ``x W^T + b``; the kind says how it was fitted (closed forms, or by
    gradients). ``low_rank`` is ``U (V x) + b`` with ``rank`` directions. ``autoencoder`` is ``W2 relu(W1 x + b1) + b2``
    with ``hidden`` units, by default ``int(sqrt(d_source * d_target))`` (arXiv 2503.04429, section 3; its published
    code has the second bias). ``residual`` adds ``x`` to the output.

    Raises pydantic's ValidationError (a ValueError) where ``residual`` is asked for unequal widths, ``hidden`` or
    ``rank`` is given for a kind that has none, or ``low_rank`` has no rank or one above the smaller width.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: MapperKind
    d_source: int = Field(ge=1, le=MAX_WIDTH)
    d_target: int = Field(ge=1, le=MAX_WIDTH)
    residual: bool = False
    hidden: int | None = Field(default=None, ge=1, le=4 * MAX_WIDTH)
    rank: int | None = Field(default=None, ge=1, le=MAX_WIDTH)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.residual and self.d_source != self.d_target:
            raise ValueError(
                f"residual needs equal widths, got d_source {self.d_source} and d_target {self.d_target}: "
                "set residual to false"
            )
        if self.hidden is not None and self.kind != "autoencoder":
            raise ValueError(f"hidden is a setting of kind 'autoencoder' alone, got kind {self.kind!r}: leave it out")
        if (self.rank is None) == (self.kind == "low_rank"):
            raise ValueError(f"rank is a setting that kind 'low_rank' needs and no other has, got kind {self.kind!r}")
        if self.rank is not None and self.rank > (smaller := min(self.d_source, self.d_target)):
            raise ValueError(f"rank is {self.rank}, but the smaller width is {smaller}: lower it")
        return self

    @property
    def hidden_width(self) -> int:
        """Units of the hidden layer of an autoencoder, the default filled in."""
        return self.hidden if self.hidden is not None else isqrt(self.d_source * self.d_target)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(prod(shape) for shape in self.parameter_shapes().values())

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape, as the module's state and a stored mapper have them (float32)."""
        if self.kind == "autoencoder":
            hidden = self.hidden_width
            return {
                "encoder_weight": (hidden, self.d_source),
                "encoder_bias": (hidden,),
                "decoder_weight": (self.d_target, hidden),
                "decoder_bias": (self.d_target,),
            }
        if self.rank is not None:
            return {
                "down_weight": (self.rank, self.d_source),
                "up_weight": (self.d_target, self.rank),
                "bias": (self.d_target,),
            }
        return {"weight": (self.d_target, self.d_source), "bias": (self.d_target,)}
