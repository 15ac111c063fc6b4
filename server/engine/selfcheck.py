"""Shows, before anything is served, that a model in the row engine computes what it computes alone.

Shapes: T tokens of a text, V vocabulary.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from mappers.errors import UnsupportedArchitecture
from server.engine.precision import served_dtype
from server.engine.request import GenerationRequest
from server.engine.row import Row
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler
from server.engine.text import RowText, TextCodec
from server.interventions.active import ActiveIntervention
from server.interventions.catalog import ResolvedIntervention
from server.types import Apply, SamplingParams

_LENGTHS = (13, 5)
_DECODED = 3
_TOLERANCE = {"float32": 2e-3, "float16": 3e-2, "int8": 3e-2, "bfloat16": 1e-1, "int4": 1e-1}
"""In int8 rows do not differ at all by their neighbours, but a last bit before it may round to another level."""


def check_exact(model: nn.Module, runner: Runner, codec: TextCodec, vocab: int) -> None:
    """Compares two rows, computed in chunks and then token by token, with plain forwards of the model.

    Raises UnsupportedArchitecture with the reason where the logits differ by more than rounding, where a forward
    raises, or where a block's output cannot be intervened on.
    """
    name = type(model).__name__
    rng = random.Random(0)
    texts = [[rng.randrange(vocab) for _ in range(length + _DECODED)] for length in _LENGTHS]
    try:
        expected = [_alone(model, text, runner.device) for text in texts]
        worst = _worst(_check_rows(runner, codec, texts, expected), model)
        _check_sites(runner, codec, texts[1])
    except UnsupportedArchitecture:
        raise
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UnsupportedArchitecture(f"{name} cannot be served row by row: {reason}") from error
    tolerance = _TOLERANCE[served_dtype(model)]
    if not worst <= tolerance:
        raise UnsupportedArchitecture(
            f"{name} gives other results in a mixed batch than alone (relative difference {worst:.1e}, allowed "
            f"{tolerance:.0e}): it cannot be served exactly"
        )


def _worst(differences: list[float], model: nn.Module) -> float:
    """The largest difference, NaN if one of them is.

    In 16 bits a router between experts may turn at a near tie, with any effect: there a quarter may lie higher.
    """
    found = torch.tensor(differences).sort().values
    if bool(found.isnan().any()) or not _has_routers(model):
        return float(found.amax())
    return float(found.quantile(0.75))


def _has_routers(model: Any) -> bool:
    config = model.config.get_text_config(decoder=True)
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    narrow = next(model.parameters()).dtype != torch.float32
    return narrow and any(getattr(config, name, None) for name in experts)


@torch.inference_mode()
def _alone(model: Any, text: list[int], device: torch.device) -> Tensor:
    logits_TV: Tensor = model(input_ids=torch.tensor([text], device=device), use_cache=False).logits[0].float()
    return logits_TV


def _row(codec: TextCodec, name: str, ids: list[int]) -> Row:
    request = GenerationRequest(name, tuple(ids), SamplingParams(max_tokens=_DECODED))
    return Row(request, lambda _event: None, RowText(codec, ids, ()), random.Random(0))


def _check_rows(runner: Runner, codec: TextCodec, texts: list[list[int]], expected: list[Tensor]) -> list[float]:
    scheduler = Scheduler(max_batch=len(texts), prefill_tokens=8)
    rows = {_row(codec, str(i), text[:-_DECODED]): i for i, text in enumerate(texts)}
    for row in rows:
        scheduler.submit(row)
    differences = []
    while (batch := scheduler.next_batch()) is not None:
        result = runner.forward(batch)
        scheduler.commit(batch)
        for row, logits_V in zip(result.ready, result.logits_BV, strict=True):
            at = len(row.tokens) - 1
            wanted_V = expected[rows[row]][at]
            differences.append(float((logits_V - wanted_V).abs().max() / wanted_V.abs().max().clamp_min(1e-6)))
            if row.generated == _DECODED:
                scheduler.release(row)
                runner.release(row)
            else:
                row.tokens.append(texts[rows[row]][at + 1])
    return differences


def _check_sites(runner: Runner, codec: TextCodec, text: list[int]) -> None:
    """An addition at every site has to fire at every site."""
    scheduler = Scheduler(max_batch=1, prefill_tokens=len(text))
    row = _row(codec, "sites", text)
    ones_D = torch.ones(runner.stack.width, device=runner.device)
    probe = ResolvedIntervention(
        "add", "self-check", "", runner.stack.sites, 1e-3, Apply(), dict.fromkeys(runner.stack.sites, ones_D)
    )
    row.interventions = [ActiveIntervention.begin(probe, runner.meters)]
    scheduler.submit(row)
    batch = scheduler.next_batch()
    assert batch is not None
    result = runner.forward(batch)
    scheduler.release(row)
    runner.release(row)
    row.interventions[0].end(runner.meters)
    if result.failed:
        raise UnsupportedArchitecture(f"its blocks cannot be intervened on: {next(iter(result.failed.values()))}")
