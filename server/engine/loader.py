"""Puts an engine around a loaded model, or says why this model cannot be served exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mappers.loading import LoadedModel, eos_token_ids
from mappers.memory import free_memory
from server.engine.attention import observe_layers
from server.engine.engine import Engine
from server.engine.kv import row_bytes
from server.engine.linears import weight_bytes
from server.engine.memory import plan_memory
from server.engine.precision import served_dtype
from server.engine.runner import Runner
from server.engine.selfcheck import check_exact
from server.engine.text import TextCodec
from server.settings import ConfigurationError
from server.types import EngineLimits, MemoryPlan, ModelInfo

_UNBOUNDED_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Bounds the operator sets; ``max_context`` None means what the model was built for.

    ``prefill_tokens`` prompt tokens are read in a step, ``idle_prefill_tokens`` where no answer waits for it (None: as
    many).

    ``kv_bytes`` is the memory for keys and values of running requests, ``prefix_bytes`` that for prompt prefixes which
    later requests reuse (0 turns that off); None plans them from what is free. ``static`` decode steps are captured
    and replayed on a GPU (None: where there is one); without, they run the same program step by step.
    """

    max_batch: int
    max_waiting: int
    prefill_tokens: int
    max_context: int | None = None
    idle_prefill_tokens: int | None = None
    kv_bytes: int | None = None
    prefix_bytes: int | None = 0
    static: bool | None = None


def build_engine(
    loaded: LoadedModel, options: EngineOptions, *, name: str | None = None, dtype_reason: str = ""
) -> tuple[Engine, TextCodec]:
    """An engine (not started) and the codec of its texts. ``name`` is the served name, by default the model's own.
    ``dtype_reason`` says why the model is served in its dtype, where nobody asked for it.

    Raises UnsupportedArchitecture where a self-check shows that rows of a batch would not get what the model alone
    gives them, and ConfigurationError where not even one row of the whole context has room.
    """
    config: Any = loaded.model.config
    context = min(model_context(config), options.max_context or model_context(config))
    vocab = int(config.get_text_config(decoder=True).vocab_size)
    codec = TextCodec(loaded.tokenizer, vocab)
    shapes = observe_layers(loaded.model, loaded.stack.layers, context)
    parameter = next(loaded.model.parameters())
    row_at_most = row_bytes(shapes, context, context)
    memory = _plan(loaded.model, options, row_at_most)
    static = parameter.device.type == "cuda" if options.static is None else options.static
    # Slots that never move are as long as the context, whatever a row needs.
    max_batch = min(options.max_batch, memory.kv // row_at_most) if static else options.max_batch
    if not max_batch:
        raise ConfigurationError(
            f"max_context: keys and values of {context} tokens take {row_at_most / 2**20:.0f} MiB, which is more than "
            f"the {memory.kv / 2**20:.0f} MiB there are: lower it"
        )
    runner = Runner(loaded.model, loaded.stack, shapes, context, memory.prefixes, max_batch if static else 0)
    try:
        check_exact(loaded.model, runner, codec, vocab)
    except BaseException:
        runner.close()
        raise
    info = ModelInfo(
        name=name or loaded.name,
        architecture=type(loaded.model).__name__,
        layers=loaded.stack.layers,
        width=loaded.stack.width,
        vocab_size=vocab,
        context=context,
        dtype=served_dtype(loaded.model),
        device=str(parameter.device),
        config_digest=loaded.config_digest,
        dtype_reason=dtype_reason,
        weight_digest=loaded.weight_digest,
    )
    limits = EngineLimits(max_batch, options.max_waiting, context, options.prefill_tokens, memory)
    engine = Engine(runner, codec, info, limits, eos_token_ids(loaded.model), options.idle_prefill_tokens)
    return engine, codec


def _plan(model: nn.Module, options: EngineOptions, row_at_most: int) -> MemoryPlan:
    device = next(model.parameters()).device
    return plan_memory(
        weight_bytes(model),
        row_at_most,
        options.max_batch,
        free_memory(device),
        device.type,
        options.kv_bytes,
        options.prefix_bytes,
    )


def model_context(config: Any) -> int:
    """Positions the model can serve exactly.

    Rotary embeddings that change with the longest text of a batch would let one row change another: such models are
    served up to the length below which nothing changes.
    """
    text_config = config.get_text_config(decoder=True)
    context = int(getattr(text_config, "max_position_embeddings", None) or _UNBOUNDED_CONTEXT)
    rope = getattr(text_config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            context = min(context, int(parameters.get("original_max_position_embeddings") or context))
    return context
