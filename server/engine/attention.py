"""Attention of a packed forward: the stock model computes all tokens of all rows in one sequence, and this module lets
each row attend to its own keys and values only.

Rows of different requests never meet in one product, so nothing that one row holds (NaN included) reaches another.

Shapes: N packed tokens, n rows of a group, Q query and G grouped heads, H key-value heads, E key and F value head size,
T columns attended, P tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from mappers.errors import UnsupportedArchitecture
from server.engine.kv import LayerShape
from server.engine.layout import DecodeGroup, PromptGroup, StepLayout

_T = TypeVar("_T")
_ROWS = "interlock_rows"
_OBSERVED = "interlock_observed"
_LARGE_KEYS = 1 << 24
"""Bytes of keys that no cache holds."""
_HEEDED = {"scaling", "softcap", "sliding_window"}  # a window by way of the mask
_WITHOUT_EFFECT = {
    "dropout",
    "is_causal",
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_router_logits",
}


@dataclass(slots=True)
class _Observer:
    """Stands in for a layout while the shapes are read off the model itself."""

    context: int
    seen: dict[int, LayerShape] = field(default_factory=dict)


# Not an argument of the model: some models do not hand unknown ones on to their attention.
_layout: ContextVar[StepLayout] = ContextVar("layout")
_observer: ContextVar[_Observer] = ContextVar("observer")


@contextmanager
def packed_attention(config: Any, layout: StepLayout) -> Iterator[None]:
    """Within the block the model of ``config`` attends by the rows of ``layout``; afterwards it is the stock model."""
    AttentionInterface.register(_ROWS, _attend)
    with _bound(_layout, layout), _implementation(config, _ROWS):
        yield


@contextmanager
def _bound(variable: ContextVar[_T], value: _T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def _implementation(config: Any, name: str) -> Iterator[None]:
    text_config = config.get_text_config(decoder=True)
    stock = text_config._attn_implementation
    text_config._attn_implementation = name
    try:
        yield
    finally:
        text_config._attn_implementation = stock


@torch.inference_mode()
def observe_layers(model: nn.Module, layers: int, context: int) -> tuple[LayerShape, ...]:
    """What each layer keeps for a token of a text of at most ``context`` tokens, read off one forward of one token.

    Raises UnsupportedArchitecture where attention does not go through transformers' attention interface (only there
    can rows of one batch be kept apart), or sees other tokens than all before it or the last ones.
    """
    observer = _Observer(context)
    device = next(model.parameters()).device
    one = torch.zeros(1, 1, dtype=torch.long, device=device)
    config: Any = model.config
    AttentionInterface.register(_OBSERVED, _observe)
    AttentionMaskInterface.register(_OBSERVED, partial(_observe_mask, context))
    try:
        with _bound(_observer, observer), _implementation(config, _OBSERVED):
            model(input_ids=one, position_ids=one, use_cache=False)
    except UnsupportedArchitecture:
        raise
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UnsupportedArchitecture(f"{type(model).__name__} cannot be served row by row: {reason}") from error
    if sorted(observer.seen) != list(range(layers)):
        raise UnsupportedArchitecture(
            f"{type(model).__name__}: {len(observer.seen)} of its {layers} layers attend through transformers' "
            "attention interface; the others could not be kept apart by rows"
        )
    return tuple(observer.seen[layer] for layer in range(layers))


def _observe(
    module: nn.Module,
    query_1Q1E: Tensor,
    key_1H1E: Tensor,
    value_1H1F: Tensor,
    attention_mask: Tensor | None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Notes a layer's shapes; a token that is alone attends to itself. Returns ``(1, 1, Q, F)``."""
    observer = _observer.get()
    layer: Any = module.layer_idx
    name = type(module).__name__
    _refuse_unknown(name, others)
    if layer in observer.seen:
        raise UnsupportedArchitecture(f"{name} attends more than once in layer {layer}")
    window = _window(name, attention_mask, observer.context)
    observer.seen[layer] = LayerShape(
        key_1H1E.shape[1], key_1H1E.shape[-1], value_1H1F.shape[-1], window, key_1H1E.dtype
    )
    groups = query_1Q1E.shape[1] // value_1H1F.shape[1]
    return value_1H1F.repeat_interleave(groups, 1).transpose(1, 2), None


def _refuse_unknown(name: str, others: Mapping[str, Any]) -> None:
    """An argument of the attention that this module does not know would change the result: attention sinks, biases."""
    given = {argument for argument, value in others.items() if value is not None}
    unknown = sorted(given - _HEEDED - _WITHOUT_EFFECT)
    if unknown:
        raise UnsupportedArchitecture(f"{name} attends with {', '.join(unknown)}, which is not known")


def _observe_mask(
    context: int, *, mask_function: Callable[..., Tensor], device: torch.device | str | None = None, **_others: Any
) -> Tensor:
    """Takes a mask's place, and says how many tokens it lets the last of ``context`` tokens see: ``(1, 1, 1, 1)``.

    0 where it is not a plain window, such as chunks. Masks count, not what the attention is told: some models hand a
    window to the kernels that need no mask and to no others, and some do not hand it on at all.
    """
    queries = [0, context // 2, max(context - 2, 0), context - 1]
    query_41 = torch.tensor(queries, device=device)[:, None]
    key_T = torch.arange(context, device=device)
    seen_4T = mask_function(0, 0, query_41, key_T).broadcast_to(4, context)
    window = int(seen_4T[-1].sum())
    plain_4T = (key_T <= query_41) & (key_T > query_41 - window)
    return torch.full((1, 1, 1, 1), window if torch.equal(seen_4T, plain_4T) else 0, device=device)


def _window(name: str, mask: Tensor | None, context: int) -> int | None:
    """The window that :func:`_observe_mask` put into ``mask``; None where it spans the whole context."""
    if mask is None or mask.shape != (1, 1, 1, 1) or mask.dtype != torch.long or not mask.item():
        raise UnsupportedArchitecture(f"{name} attends with a mask that is neither causal nor a window of last tokens")
    window = int(mask)
    return None if window >= context else window


def _attend(
    module: nn.Module,
    query_1QNE: Tensor,
    key_1HNE: Tensor,
    value_1HNF: Tensor,
    attention_mask: Tensor | None = None,  # noqa: ARG001 - some models give it by its name
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **_others: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in every layer; returns ``(1, N, Q, F)``."""
    layout = _layout.get()
    layer: Any = module.layer_idx
    scale = query_1QNE.shape[-1] ** -0.5 if scaling is None else scaling
    parts_nQF = [
        *(_decode(g, layer, query_1QNE[0], key_1HNE[0], value_1HNF[0], scale, softcap) for g in layout.decode),
        *(_read(g, layer, query_1QNE[0], key_1HNE[0], value_1HNF[0], scale, softcap) for g in layout.prompts),
    ]
    out_NQF = parts_nQF[0] if len(parts_nQF) == 1 else torch.cat(parts_nQF)
    return out_NQF[None], None


def _decode(
    group: DecodeGroup,
    layer: int,
    query_QNE: Tensor,
    key_HNE: Tensor,
    value_HNF: Tensor,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """One token a row: writes its key and value, then each row attends to its own columns; returns ``(n, Q, F)``.

    Two batched products, also for one query a head: CPU kernels for scaled dot product attention are several times
    slower there in bfloat16, and not faster in float32.
    """
    keys_nHTE, values_nHTF, mask_n1T = group.write(layer, key_HNE[:, group.tokens], value_HNF[:, group.tokens])
    heads = keys_nHTE.shape[1]
    query_nHGE = torch.unflatten(query_QNE[:, group.tokens].transpose(0, 1) * scale, 1, (heads, -1))
    scores_nHGT = _scores(query_nHGE, keys_nHTE)
    if softcap is not None:
        scores_nHGT = torch.tanh(scores_nHGT / softcap) * softcap
    if mask_n1T is not None:
        scores_nHGT += mask_n1T[:, None]
    p_nHGT = scores_nHGT.softmax(-1, dtype=torch.float32).to(values_nHTF.dtype)
    return torch.matmul(p_nHGT, values_nHTF).flatten(1, 2)


def _scores(query_nHGE: Tensor, keys_nHTE: Tensor) -> Tensor:
    """The products of every query with the keys of its head, ``(n, H, G, T)``.

    On a CPU the keys are the left factor in bfloat16 (1.5 to 4 times as fast) and where no cache holds them.
    """
    large = keys_nHTE.numel() * keys_nHTE.element_size() > _LARGE_KEYS
    if keys_nHTE.device.type == "cpu" and (large or keys_nHTE.dtype == torch.bfloat16):
        return torch.matmul(keys_nHTE, query_nHGE.transpose(2, 3)).transpose(2, 3).contiguous()
    return torch.matmul(query_nHGE, keys_nHTE.transpose(2, 3))


def _read(
    group: PromptGroup,
    layer: int,
    query_QNE: Tensor,
    key_HNE: Tensor,
    value_HNF: Tensor,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Chunks of equal length at equal positions: keeps their keys and values, and returns ``(n P, Q, F)``."""
    count = len(group.prompts)
    query_nQPE = torch.unflatten(query_QNE[:, group.tokens], 1, (count, -1)).transpose(0, 1)
    key_nHTE, value_nHTF, mask_PT = group.write(layer, key_HNE[:, group.tokens], value_HNF[:, group.tokens])
    grouped = query_nQPE.shape[1] != key_nHTE.shape[1]
    if softcap is None:
        out_nQPF = F.scaled_dot_product_attention(
            query_nQPE, key_nHTE, value_nHTF, mask_PT, is_causal=mask_PT is None, scale=scale, enable_gqa=grouped
        )
    else:
        out_nQPF = _capped(query_nQPE, key_nHTE, value_nHTF, mask_PT, scale, softcap)
    return out_nQPF.transpose(1, 2).flatten(0, 1)


def _capped(
    query_nQPE: Tensor, key_nHTE: Tensor, value_nHTF: Tensor, mask_PT: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Attention whose scores are bent into ``(-softcap, softcap)`` (Gemma 2), for which there is no kernel."""
    heads, length = key_nHTE.shape[1], query_nQPE.shape[2]
    query_nHGPE = torch.unflatten(query_nQPE * scale, 1, (heads, -1))
    scores_nHGPT = torch.matmul(query_nHGPE, key_nHTE[:, :, None].transpose(-1, -2))
    scores_nHGPT = torch.tanh(scores_nHGPT / softcap) * softcap
    if mask_PT is None:
        mask_PT = torch.ones(length, length, dtype=torch.bool, device=scores_nHGPT.device).tril()
    scores_nHGPT = scores_nHGPT.masked_fill(~mask_PT, float("-inf"))
    return torch.matmul(scores_nHGPT.softmax(-1), value_nHTF[:, :, None]).flatten(1, 2)
