"""One type that names a place in a model, so that no bare layer number crosses a public signature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Point = Literal["resid_post"]


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """The residual stream after decoder block ``layer`` (0-based), that is, the block's output.

    ``Site(0)`` is the output of the first block; the embeddings have no site. Written ``resid_post.3`` in tensor
    names and text.
    """

    layer: int
    point: Point = "resid_post"

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ValueError(f"layer must be >= 0 (0 is the first block), got {self.layer}")
        if self.point != "resid_post":
            raise ValueError(f"point must be 'resid_post', got {self.point!r}")

    def __str__(self) -> str:
        return f"{self.point}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Reads what ``str(site)`` wrote; raises ValueError on anything else."""
        point, _, layer = text.rpartition(".")
        if point != "resid_post" or not layer.isdecimal():
            raise ValueError(f"a site is written 'resid_post.<layer>', got {text!r}")
        return cls(int(layer))


Place = tuple[Site | None, Site]
"""The site of another model that an edit comes from, None where it comes from none, and the site where it acts."""
