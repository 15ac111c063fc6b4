"""Activation patching for whole generations: a model that goes on from another's own activations."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from mappers.architectures import discover
from mappers.loading import LoadedModel
from mappers.sites import Site


def patched(tuned: LoadedModel, base: LoadedModel, site: Site) -> LoadedModel:
    """``tuned`` with all up to ``site`` taken from ``base``, its twin: what a perfect mapper there would give."""
    model: Any = copy.deepcopy(tuned.model)
    own: Any = base.model
    model.set_input_embeddings(copy.deepcopy(own.get_input_embeddings()))  # the head stays the tuned model's
    stack = discover(model)
    for block, block_of_base in zip(stack.blocks[: site.layer + 1], base.stack.blocks, strict=False):
        block.load_state_dict(block_of_base.state_dict())
    return replace(tuned, model=model, stack=stack)
