"""What the engine refuses before it takes a request: that which could never run, or would end others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from server.engine.request import GenerationRequest
from server.errors import ContextLengthExceeded, InvalidRequest
from server.types import EngineLimits

RowBytes = Callable[[int], int]
"""Bytes of keys and values of a row of so many tokens."""


def check_request(request: GenerationRequest, limits: EngineLimits, vocab_size: int, row_bytes: RowBytes) -> None:
    """Raises InvalidRequest, or ContextLengthExceeded where the context or the memory cannot hold the request."""
    if not request.prompt_ids:
        raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
    _check_ids(request.prompt_ids, vocab_size, "prompt")
    _check_ids(request.sampling.logit_bias, vocab_size, "logit_bias")
    _check_ids(request.scored_ids, vocab_size, "scored_ids")
    needed = request.tokens_at_most
    if needed > limits.context:
        raise ContextLengthExceeded(
            f"{len(request.prompt_ids)} prompt tokens and max_tokens {request.sampling.max_tokens} make {needed}, "
            f"but the context holds {limits.context}: shorten the prompt or lower max_tokens",
            param="max_tokens",
        )
    if row_bytes(needed) > limits.memory.kv:
        raise ContextLengthExceeded(
            f"{needed} tokens need more than the {limits.memory.kv // 2**20} MiB this server has for keys "
            "and values: shorten the prompt, lower max_tokens, or start it with a larger --kv-memory-mib",
            param="max_tokens",
        )


def check_together(requests: Sequence[GenerationRequest], limits: EngineLimits, row_bytes: RowBytes) -> None:
    """Raises ContextLengthExceeded where the memory cannot hold all of the requests at once."""
    if sum(row_bytes(request.tokens_at_most) for request in requests) > limits.memory.kv:
        raise ContextLengthExceeded(
            f"{len(requests)} settings read side by side need more than the {limits.memory.kv // 2**20} MiB this "
            'server has for keys and values: compare fewer, lower max_tokens, or send "divergence": false',
            param="settings",
        )


def _check_ids(ids: Collection[int], vocab_size: int, field: str) -> None:
    """An id without an embedding would raise inside the forward, and end every row of its batch."""
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise InvalidRequest(f"token ids must be in [0, {vocab_size}) for this model", param=field)
