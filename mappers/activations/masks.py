"""Tokens that are better left out of fits: special tokens, and positions with massive activations.

A few positions of most models (the first token, some delimiters) have residual streams hundreds of times longer than
all others (arXiv 2402.17762); in a sum of squares nothing but them would count.

Shapes: N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mappers.activations.collect import collect
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.rendering import Rendered
from mappers.sites import Site

_SAMPLE = 256


@dataclass(frozen=True, slots=True)
class Mask:
    """Which tokens are left out. ``massive``: those with a norm above so many medians of their site (None: none are).

    ``special_tokens``: those without text of their own, such as BOS and the tags of a chat template.
    """

    massive: float | None = None
    special_tokens: bool = False

    def norm_limits(
        self, loaded: LoadedModel, sites: Sequence[Site], sequences: Sequence[Sequence[int]], *, batch_size: int
    ) -> dict[Site, float]:
        """The longest Euclidean norm that is kept at each site; empty where nothing is massive.

        Medians are taken over the tokens of at most 256 sequences, spread evenly over ``sequences``. Raises DataError
        where there is no token.
        """
        if self.massive is None:
            return {}
        sample = sequences[:: max(1, -(-len(sequences) // _SAMPLE))]
        norms: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for batch in collect(loaded, sites, sample, batch_size=batch_size):
            for site in sites:
                norms[site].append(batch.real(site).norm(dim=-1).cpu())
        if not all(norms.values()):
            raise DataError("there is no token to take the median norm of: use longer texts")
        return {site: self.massive * float(torch.cat(found).median()) for site, found in norms.items()}


def has_text(rendered: Rendered) -> list[bool]:
    """Per token, whether it has text of its own."""
    return [start < stop for start, stop in rendered.offsets]
