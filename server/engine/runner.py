"""One forward of the stock model over a batch of rows, with the plan of its interventions.

Shapes: B batch rows, Q new tokens a row (padded), T columns attended, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mappers.architectures import DecoderStack
from server.engine.hooks import PlanHooks
from server.engine.kv import KvWindow, RowCache
from server.engine.masks import AttentionMasks
from server.engine.row import Row
from server.engine.sampling import token_logprobs
from server.engine.scheduler import Batch, Move
from server.interventions.meter import MeterBank
from server.interventions.plan import EMPTY_PLAN, BatchPlan, PlanRow
from server.interventions.positions import active_offsets


@dataclass(frozen=True, slots=True)
class StepResult:
    """Logits (float32) of the rows that need a token, and the rows whose forward must be thrown away.

    ``ready[i]`` is the row of ``logits_BV[i]``; ``failed`` maps rows to the reason; a failed row is never ready.
    """

    ready: tuple[Row, ...]
    logits_BV: Tensor
    failed: dict[Row, str]


class Runner:
    """Owns the cache and the hooks of one model. Not thread safe: only the engine's thread may call it."""

    def __init__(self, model: nn.Module, stack: DecoderStack, context: int) -> None:
        self._model = model
        self.stack = stack
        self._context = context
        parameter = next(model.parameters())
        self.device = parameter.device
        self._masks = AttentionMasks(model.config, parameter.dtype)
        self._selects_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.cache = RowCache(stack.layers)
        self.meters = MeterBank(self.device)
        self._hooks = PlanHooks(stack, self.meters)
        self._plan_key: tuple[object, ...] = ()
        self._plan = EMPTY_PLAN

    @torch.inference_mode()
    def rearrange(self, moves: list[Move], live: int) -> None:
        """Carries out slot changes; with no live row left all cache memory is freed."""
        if live:
            self.cache.rearrange(moves)
        elif moves:
            self.cache.release()

    @torch.inference_mode()
    def forward(self, batch: Batch) -> StepResult:
        """Computes the batch's tokens and applies its interventions. Raises what the model raises."""
        starts = [row.computed for row in batch.rows]
        width = max(batch.counts)
        # A shorter row is padded in front, so that the last logits are those needed; its padding is written behind it.
        padding_B1 = torch.tensor([width - count for count in batch.counts], device=self.device)[:, None]
        turned_BQ = (torch.arange(width, device=self.device) - padding_B1) % width
        columns_BQ = torch.tensor(starts, device=self.device)[:, None] + turned_BQ
        attended = max(starts) + width
        slots = [row.slot for row in batch.rows]
        self.cache.reserve(max(slots) + 1, attended)
        self.cache.aim(KvWindow(slots, columns_BQ, attended))
        arguments: dict[str, Any] = {
            "input_ids": self._input_ids(batch, width),
            # Padding may lie beyond the context, where learned positions have no entry.
            "position_ids": columns_BQ.clamp_max(self._context - 1),
            "attention_mask": self._masks.build(columns_BQ, attended),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self._selects_logits:
            # An index, not a count: a slice of the last tokens is no matrix, and its product with the vocabulary slow.
            last = torch.tensor([width - 1], device=self.device)
            arguments["logits_to_keep"] = 0 if any(_scores_prompt(row) for row in batch.rows) else last
        self._hooks.begin(self._planned(batch, width))
        try:
            logits_BQV = self._model(**arguments).logits
        finally:
            failed_rows = self._hooks.end()
        return self._result(batch, logits_BQV, failed_rows)

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._hooks.remove()

    def _input_ids(self, batch: Batch, width: int) -> Tensor:
        ids = []
        for row, count in zip(batch.rows, batch.counts, strict=True):
            chunk = row.tokens[row.computed : row.computed + count]
            ids.append(chunk[-1:] * (width - count) + chunk)
        return torch.tensor(ids, device=self.device)

    def _planned(self, batch: Batch, width: int) -> BatchPlan:
        if not any(row.interventions for row in batch.rows):
            return EMPTY_PLAN
        key: tuple[object, ...] = ()
        if batch.phase == "decode":
            key = tuple((row, row.revision, _touches(row)) for row in batch.rows)
            if key == self._plan_key:
                return self._plan
        rows = [
            PlanRow(i, (i + 1) * width - count, row.computed, count, row.prompt_len, row.interventions)
            for i, (row, count) in enumerate(zip(batch.rows, batch.counts, strict=True))
        ]
        self._plan_key, self._plan = key, BatchPlan.build(rows, len(rows) * width, self.device)
        return self._plan

    def _result(self, batch: Batch, logits_BQV: Tensor, failed_rows: dict[int, str]) -> StepResult:
        ready: list[int] = []
        for i, (row, count) in enumerate(zip(batch.rows, batch.counts, strict=True)):
            if i in failed_rows:
                continue
            if _scores_prompt(row):
                self._score_prompt(row, logits_BQV[i, -count:])
            if row.computed + count >= len(row.tokens):
                ready.append(i)
        # A decode step needs every row: a view, where indexing would copy the whole vocabulary.
        logits_BV = logits_BQV[:, -1] if len(ready) == len(batch.rows) else logits_BQV[ready, -1]
        return StepResult(
            tuple(batch.rows[i] for i in ready),
            logits_BV.float(),
            {batch.rows[i]: reason for i, reason in failed_rows.items()},
        )

    def _score_prompt(self, row: Row, logits_QV: Tensor) -> None:
        scored = row.tokens[row.computed + 1 : min(row.computed + len(logits_QV) + 1, row.prompt_len)]
        logprobs_KV = logits_QV[: len(scored)].float().log_softmax(-1)
        row.prompt_logprobs += token_logprobs(logprobs_KV, scored, row.request.sampling.prompt_logprobs or 0)


def _scores_prompt(row: Row) -> bool:
    return row.request.sampling.prompt_logprobs is not None and row.prompt_left > 0


def _touches(row: Row) -> tuple[bool, ...]:
    """Which of its interventions act on the one token that the row computes next."""
    spans = (active.resolved.apply for active in row.interventions)
    return tuple(bool(active_offsets(apply, row.computed, 1, row.prompt_len)) for apply in spans)
