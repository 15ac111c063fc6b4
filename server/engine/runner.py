"""One forward of the stock model over the packed tokens of a batch, with the plan of its interventions.

Shapes: N packed tokens, K tokens whose logits are needed, B rows, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mappers.architectures import DecoderStack
from server.engine.attention import packed_attention
from server.engine.divergence import divergences
from server.engine.hooks import PlanHooks
from server.engine.kv import KvCache, LayerShape, Slot
from server.engine.layout import StepLayout, place_rows
from server.engine.prefix import PrefixCache
from server.engine.resume import BlockGates
from server.engine.reuse import PrefixReuse
from server.engine.row import Row
from server.engine.sampling import token_logprobs
from server.engine.scheduler import Batch
from server.engine.static import StaticDecode
from server.interventions.meter import MeterBank
from server.interventions.plan import EMPTY_PLAN, BatchPlan, PlanRow

_METERS_A_ROW = 9
"""A switch and the most vectors that a request may name."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Logits (float32) of the rows that need a token, and the rows whose forward must be thrown away.

    ``ready[i]`` is the row of ``logits_BV[i]``; ``failed`` maps rows to the reason; a failed row is never ready.
    ``compared`` are rows that have read all of their text.
    """

    ready: tuple[Row, ...]
    logits_BV: Tensor
    failed: dict[Row, str]
    compared: tuple[Row, ...]


class Runner:
    """Owns the cache and the hooks of one model. Not thread safe: only the engine's thread may call it.

    ``shapes`` is what each layer keeps for a token; ``prefix_bytes`` the memory for prefixes that are reused. With
    ``static_rows`` decode steps of up to so many rows are static: captured once and replayed where there is a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: DecoderStack,
        shapes: Sequence[LayerShape],
        context: int,
        prefix_bytes: int,
        static_rows: int = 0,
    ) -> None:
        self._model: Any = model
        self.stack = stack
        self.device = next(model.parameters()).device
        self._selects_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.cache = KvCache(shapes, context, self.device, static_rows)
        # What was captured writes to the meters that there were: they must not have to grow.
        self.meters = MeterBank(self.device, max(64, static_rows * _METERS_A_ROW + 1))
        self.reuse = PrefixReuse(PrefixCache(prefix_bytes, stack.layers), self.cache, self.meters, stack.layers)
        self._gates = BlockGates(stack)
        self._hooks = PlanHooks(stack, self.meters)
        self._static = (
            StaticDecode(model, self.cache, self._hooks, self.meters, stack.width, static_rows) if static_rows else None
        )
        self._plan_key: tuple[object, ...] = ()
        self._plan = EMPTY_PLAN
        self._repeats = 0

    @property
    def static(self) -> bool:
        """Whether decode steps are static: slots then stay allocated."""
        return self._static is not None

    @torch.inference_mode()
    def release(self, row: Row) -> None:
        """Gives back what the row holds; a second call does nothing."""
        if isinstance(row.kv, Slot):
            row.kv.pool.remove(row.kv)
        row.kv = None
        self.reuse.settle(row)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> StepResult:
        """Computes the batch's tokens and applies its interventions.

        Raises what the model raises, and then rows that decode are as they were: they can be computed again.
        """
        before = self.meters.copy() if batch.phase == "mixed" and self.meters.in_use else None
        try:
            return self._forward(batch)
        except Exception:
            if before is not None:
                self.meters.put_back(before)
            raise

    def _forward(self, batch: Batch) -> StepResult:
        if self._static is not None and batch.phase == "decode":
            place_rows(batch, self.cache)
            rows = tuple(slot.row for slot in self.cache.pools[0].slots)
            if (done := self._static.forward(rows)) is not None:
                self._repeats = 0
                return _decoded(rows, *done)
        layout = StepLayout.build(batch, self.cache, self.device)
        ids: list[int] = []
        positions: list[int] = []
        for row, count in zip(layout.rows, layout.counts, strict=True):
            ids += row.tokens[row.computed : row.computed + count]
            positions += range(row.computed, row.computed + count)
        kept = [_kept(row, first, count) for row, first, count in zip(*_columns(layout), strict=True)]
        wanted = [token for tokens in kept for token in tokens] or [len(ids) - 1]
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor([ids], device=self.device),
            "position_ids": torch.tensor([positions], device=self.device),
            "use_cache": False,
        }
        everything = len(wanted) == len(ids)
        if self._selects_logits:
            arguments["logits_to_keep"] = 0 if everything else torch.tensor(wanted, device=self.device)
        plan = self._planned(batch, layout)
        self._hooks.begin(plan)
        self._gates.begin(self.reuse.kept_layers(layout), layout.skipped, self.reuse.resumed(layout))
        try:
            with packed_attention(self._model.config, layout):
                logits_KV = self._model(**arguments).logits[0]
        finally:
            failed = self._hooks.end()
            outputs_1ND = self._gates.end()
        self.reuse.note(layout, outputs_1ND, self._hooks.noted)
        if not self._selects_logits and not everything:
            logits_KV = logits_KV[wanted]
        result = self._result(layout, kept, logits_KV, failed)
        plan.commit(failed)
        return result

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._hooks.remove()
        self._gates.remove()

    def _planned(self, batch: Batch, layout: StepLayout) -> BatchPlan:
        """The plan of a forward; that of the last one again while the same rows decode and nothing changes for them."""
        if not any(row.interventions for row in layout.rows):
            self._plan_key, self._plan, self._repeats = (), EMPTY_PLAN, 0
            return EMPTY_PLAN
        key = tuple((row, row.revision) for row in layout.rows) if batch.phase == "decode" else ()
        if self._repeats and key == self._plan_key:
            self._repeats -= 1
            return self._plan
        rows = [
            PlanRow(i, first, row.computed, count, row.prompt_len, row.interventions)
            for i, (row, first, count) in enumerate(zip(*_columns(layout), strict=True))
        ]
        self._plan = BatchPlan.build(rows, sum(layout.counts), self.device, lowest=max(layout.skipped - 1, 0))
        self._plan_key, self._repeats = key, self._plan.repeats if key else 0
        return self._plan

    def _result(self, layout: StepLayout, kept: list[range], logits_KV: Tensor, failed: dict[int, str]) -> StepResult:
        ready: list[Row] = []
        last: list[int] = []
        compared_TV: dict[Row, Tensor] = {}
        stop = 0
        for i, (row, count, tokens) in enumerate(zip(layout.rows, layout.counts, kept, strict=True)):
            start, stop = stop, stop + len(tokens)
            if i in failed or not tokens:
                continue
            if row.state == "score":
                compared_TV[row] = logits_KV[start:stop]
                continue
            if _scores_prompt(row):
                self._score_prompt(row, logits_KV[start:stop])
            if row.computed + count >= len(row.tokens):
                ready.append(row)
                last.append(stop - 1)
        # A decode step needs every row: a view, where indexing would copy the whole vocabulary.
        logits_BV = logits_KV if len(last) == len(logits_KV) else logits_KV[last]
        if compared_TV and not failed:
            self._compare(compared_TV)
        done = (row for row, read_TV in compared_TV.items() if row.computed + len(read_TV) == len(row.tokens))
        reasons = {layout.rows[i]: reason for i, reason in failed.items()}
        return StepResult(tuple(ready), logits_BV.float(), reasons, () if failed else tuple(done))

    def _compare(self, logits_TV: dict[Row, Tensor]) -> None:
        """Notes how far each row lies from the first, which all are compared with, on these tokens."""
        _, *others = logits_TV
        for row, found in zip(others, divergences(list(logits_TV.values())), strict=True):
            row.divergences += found

    def _score_prompt(self, row: Row, logits_KV: Tensor) -> None:
        scored = row.tokens[row.computed + 1 : min(row.computed + len(logits_KV) + 1, row.prompt_len)]
        logprobs_KV = logits_KV[: len(scored)].float().log_softmax(-1)
        row.prompt_logprobs += token_logprobs(logprobs_KV, scored, row.request.sampling.prompt_logprobs or 0)


def _decoded(rows: tuple[Row, ...], logits_BV: Tensor, failed: dict[int, str]) -> StepResult:
    """A static step has a token for every row; nothing is compared in it."""
    sound = [i for i in range(len(rows)) if i not in failed]
    if failed:
        logits_BV = logits_BV[sound]
    reasons = {rows[i]: reason for i, reason in failed.items()}
    return StepResult(tuple(rows[i] for i in sound), logits_BV.float(), reasons, ())


def _columns(layout: StepLayout) -> tuple[tuple[Row, ...], list[int], tuple[int, ...]]:
    return layout.rows, layout.firsts, layout.counts


def _kept(row: Row, first: int, count: int) -> range:
    """Numbers of the tokens whose logits the row needs."""
    if row.state == "score":
        return range(first + max(row.prompt_len - 1 - row.computed, 0), first + count)
    if _scores_prompt(row):
        return range(first, first + count)
    return range(first + count - 1, first + count) if row.computed + count >= len(row.tokens) else range(0)


def _scores_prompt(row: Row) -> bool:
    return row.request.sampling.prompt_logprobs is not None and row.prompt_left > 0
