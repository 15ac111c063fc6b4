"""Decode steps through buffers that never move, so that a GPU can replay them as one graph.

A step is captured for a number of rows, a number of attended columns and a structure of interventions; everything else
(tokens, positions, who is steered how) is the contents of buffers, written before each replay. Without a GPU the same
program runs as it is: that is how it is tested.

Shapes: R rows (a bucket, filled up with idle ones), X lines of input (tokens, positions, and for each kind of layer
columns and their number), T columns attended, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import structlog
import torch
from torch import Tensor

from server.engine.attention import packed_attention
from server.engine.hooks import PlanHooks
from server.engine.kv import KvCache, Pool
from server.engine.layout import DecodeGroup, Reach, StepLayout
from server.engine.row import Row
from server.interventions.bank import MapperStack
from server.interventions.draft import PlanRow
from server.interventions.meter import MeterBank
from server.interventions.static import StaticPlan
from server.interventions.structure import NotStatic, Structure

_log = structlog.get_logger(__name__)

_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_FEWEST_COLUMNS = 64
_KEPT_STEPS = 64
_WARM_UPS = 2


class StaticDecode:
    """Runs decode steps of rows in the one pool of a cache with fixed slots; belongs to the engine's thread.

    ``width`` is that of the residual stream.
    """

    def __init__(
        self, model: Any, cache: KvCache, hooks: PlanHooks, meters: MeterBank, width: int, max_rows: int
    ) -> None:
        self._model = model
        self._cache = cache
        self._hooks = hooks
        self._meters = meters
        self._width = width
        self._max_rows = max_rows
        self._steps: OrderedDict[tuple[int, int, Structure], _Step] = OrderedDict()
        self._stacks: dict[Hashable, MapperStack] = {}

    def forward(self, rows: Sequence[Row]) -> tuple[Tensor, dict[int, str]] | None:
        """Logits ``(n, V)`` of ``rows``, which are all rows of the pool by slot, and failed rows with the reason.

        None where this step cannot be a static one: a mapper of an unknown class, meters that were enlarged.
        """
        planned = [PlanRow(i, i, row.computed, 1, row.prompt_len, row.interventions) for i, row in enumerate(rows)]
        most = max(row.computed for row in rows) + 1
        bucket = min(_BUCKETS[bisect_left(_BUCKETS, len(rows))], self._max_rows)
        columns = max(_FEWEST_COLUMNS, 1 << (most - 1).bit_length())
        key = (bucket, columns, Structure.of(planned))
        try:
            step = self._steps.get(key) or self._made(key, rows)
            step.write(rows)
            step.plan.fill(planned)
        except NotStatic as error:
            _log.info("decode_step_not_static", reason=str(error))
            self._steps.clear()
            return None
        self._steps.move_to_end(key)
        return step.run(len(rows))

    def _made(self, key: tuple[int, int, Structure], rows: Sequence[Row]) -> _Step:
        bucket, columns, structure = key
        (pool,) = self._cache.pools
        plan = StaticPlan(structure, bucket, self._width, self._cache.device, self._meters, self._stacks)
        step = self._steps[key] = _Step(self._model, self._cache, pool, self._hooks, plan, bucket, columns)
        # Before anything is planned: rows that warm up must not be counted as steered.
        step.write(rows)
        step.capture()
        while len(self._steps) > _KEPT_STEPS:
            self._steps.popitem(last=False)
        return step


class _Step:
    """Buffers, layout and program of one kind of step."""

    def __init__(
        self, model: Any, cache: KvCache, pool: Pool, hooks: PlanHooks, plan: StaticPlan, rows: int, columns: int
    ) -> None:
        self.plan = plan
        self._model = model
        self._hooks = hooks
        self._device = cache.device
        self._pool_columns = pool.columns
        kinds = [(shape, min(columns, held)) for (shape, _), held in zip(cache.kinds, pool.columns, strict=True)]
        self._lines_XR = torch.zeros(2 + 2 * len(kinds), rows, dtype=torch.long, device=self._device)
        self._masks = [torch.zeros(rows, 1, t, dtype=shape.dtype, device=self._device) for shape, t in kinds]
        reach = [Reach(self._lines_XR[2 + 2 * i], attended, self._masks[i]) for i, (_, attended) in enumerate(kinds)]
        group = DecodeGroup(slice(0, rows), pool, cache.place_of_layer, torch.arange(rows, device=self._device), reach)
        self._layout = StepLayout((), (), 0, (group,), ())
        self._logits_RV: Tensor | None = None
        self._replay: Callable[[], None] = self._compute

    def write(self, rows: Sequence[Row]) -> None:
        """Writes each row's token, position, column and number of columns to read; idle rows repeat the start."""
        idle = [0] * (self._lines_XR.shape[1] - len(rows))
        lines = [[row.tokens[-1] for row in rows] + idle, [row.computed for row in rows] + idle]
        for columns in self._pool_columns:
            lines.append([row.computed % columns for row in rows] + [columns - 1] * len(idle))
            lines.append([min(row.computed + 1, columns) for row in rows] + [1] * len(idle))
        self._lines_XR.copy_(torch.tensor(lines))

    def capture(self) -> None:
        """On a GPU records the program, to be replayed from now on."""
        if self._device.type != "cuda":
            return
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._compute()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._compute()
        self._replay = graph.replay

    def run(self, count: int) -> tuple[Tensor, dict[int, str]]:
        """Logits of the first ``count`` rows, and the rows whose planned sites did not run exactly once."""
        self.plan.begin()
        self._replay()
        failed = {
            row: f"the planned intervention at {site} did not run as planned"
            for site in self.plan.unfired()
            for row in self.plan.rows_at(site)
        }
        self.plan.commit(failed)
        assert self._logits_RV is not None
        return self._logits_RV[:count], failed

    def _compute(self) -> None:
        for i, mask_R1T in enumerate(self._masks):
            seen_R11 = self._lines_XR[3 + 2 * i][:, None, None]
            hidden_R1T = torch.arange(mask_R1T.shape[-1], device=self._device) >= seen_R11
            mask_R1T.zero_().masked_fill_(hidden_R1T, float("-inf"))
        with packed_attention(self._model.config, self._layout), self._hooks.static(self.plan):
            self._logits_RV = self._model(
                input_ids=self._lines_XR[None, 0], position_ids=self._lines_XR[None, 1], use_cache=False
            ).logits[0]
