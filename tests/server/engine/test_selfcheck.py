"""Models that would not be exact are refused before anything is served, and left as they were."""

import pytest
import torch

from mappers.errors import UnsupportedArchitecture
from server.engine.loader import EngineOptions, build_engine
from tests.server.engine.conftest import tiny_model

OPTIONS = EngineOptions(4, 4, 64)


def refused(loaded, says: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=says):
        build_engine(loaded, OPTIONS)
    assert not any(block._forward_hooks for block in loaded.stack.blocks), "a refused model keeps no hooks"


def test_a_sound_model_passes_and_the_check_leaves_nothing_behind():
    loaded = tiny_model("gemma3")
    engine, _ = build_engine(loaded, OPTIONS)
    assert engine._runner.meters.in_use == 0
    assert engine._runner.cache.nbytes == 0
    engine.stop()
    assert not any(block._forward_hooks for block in loaded.stack.blocks)


def test_a_model_that_mixes_rows_is_refused():
    """Rows lie one behind the other in one sequence: whatever mixes tokens outside of attention mixes rows."""
    loaded = tiny_model("llama")
    block = loaded.stack.blocks[1]
    forward = block.forward

    def mixing(hidden, *args, **kwargs):
        return forward(hidden + hidden.mean(1, keepdim=True), *args, **kwargs)

    block.forward = mixing
    refused(loaded, "other results in a mixed batch")


def test_a_model_that_ignores_positions_is_refused():
    loaded = tiny_model("llama")
    forward = loaded.model.forward

    def shifted(*args, position_ids=None, **kwargs):
        moved = None if position_ids is None else position_ids * 0
        return forward(*args, position_ids=moved, **kwargs)

    loaded.model.forward = shifted
    refused(loaded, "other results in a mixed batch")


@pytest.mark.parametrize("forward_number", range(1, 6))
def test_nan_anywhere_is_a_difference(forward_number):
    """A maximum that starts at a number would pass over a NaN. No row needs logits of the first forward."""
    loaded = tiny_model("llama")
    forward, calls = loaded.model.forward, []

    def spoilt(*args, **kwargs):
        out = forward(*args, **kwargs)
        if _by_rows(loaded):
            calls.append(1)
            if len(calls) == forward_number + 1:
                out.logits[...] = torch.nan
        return out

    loaded.model.forward = spoilt
    refused(loaded, "other results in a mixed batch")


def test_a_forward_that_raises_is_refused_with_its_reason():
    loaded = tiny_model("llama")
    forward, calls = loaded.model.forward, []

    def raising(*args, **kwargs):
        if _by_rows(loaded):
            calls.append(1)
            if len(calls) == 3:
                raise TypeError("no third forward, please")
        return forward(*args, **kwargs)

    loaded.model.forward = raising
    refused(loaded, "no third forward")


def _by_rows(loaded) -> bool:
    return loaded.model.config._attn_implementation == "interlock_rows"


def test_a_block_that_is_passed_by_is_refused():
    """Interventions at a block that does not run would be silently left out."""
    loaded = tiny_model("llama")
    block = loaded.stack.blocks[2]

    class Around(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.__dict__.update({k: v for k, v in inner.__dict__.items() if k == "attention_type"})

        def forward(self, *args, **kwargs):
            return self.inner.forward(*args, **kwargs)

    loaded.model.model.layers[2] = Around(block)
    refused(loaded, "resid_post.2 did not run")


def test_a_block_that_runs_twice_is_refused():
    """What is planned for it would be done twice."""
    loaded = tiny_model("llama")
    block = loaded.stack.blocks[1]

    class Twice(torch.nn.Module):
        attention_type = "full_attention"

        def __init__(self):
            super().__init__()
            self.inner = block

        def forward(self, hidden, *args, **kwargs):
            return self.inner(self.inner(hidden, *args, **kwargs), *args, **kwargs)

    loaded.model.model.layers[1] = Twice()
    refused(loaded, "more than once")
