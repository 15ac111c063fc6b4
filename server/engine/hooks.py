"""Applies the plan of a forward at every block, and knows afterwards what really happened.

Shapes: N tokens of all rows in this forward, D width, K tokens of a group. A model hands its hidden states over as
``h_BTD``; B times T is N, whatever the engine packs into a row.
"""

from __future__ import annotations

from functools import partial

import structlog
import torch
from torch import Tensor

from mappers.architectures import DecoderStack
from mappers.hooks import attach
from mappers.sites import Site
from server.interventions.meter import MeterBank
from server.interventions.plan import EMPTY_PLAN, BatchPlan

_log = structlog.get_logger(__name__)


class PlanHooks:
    """Hooks on every block, attached once when the engine starts; what they do is the plan of the running forward.

    A row whose operation raises, or whose site does not fire exactly once, is *failed*: its result of this forward
    must be thrown away. Other rows are not affected.
    """

    def __init__(self, stack: DecoderStack, meters: MeterBank) -> None:
        self._meters = meters
        self._plan = EMPTY_PLAN
        self._fired: set[Site] = set()
        self._failed: dict[int, str] = {}
        self._handle = attach(stack, {site: partial(self._apply, site) for site in stack.sites})

    def begin(self, plan: BatchPlan) -> None:
        """Sets the plan of the forward that follows."""
        self._plan = plan
        self._fired.clear()
        self._failed = {}

    def end(self) -> dict[int, str]:
        """Ends the forward; returns failed batch rows with the reason. Checks sites fired against sites planned."""
        plan, self._plan = self._plan, EMPTY_PLAN
        for site in plan.sites - self._fired:
            for row in plan.rows_at(site):
                self._failed[row] = f"the planned intervention at {site} did not run"
        plan.commit(self._failed)
        return self._failed

    def remove(self) -> None:
        """Takes the hooks off the model for good."""
        self._handle.remove()

    def _apply(self, site: Site, h_BTD: Tensor) -> Tensor | None:
        groups = self._plan.groups.get(site)
        if groups is None:
            return None
        if site in self._fired:
            self._failed |= dict.fromkeys(self._plan.rows_at(site), f"the block at {site} ran more than once")
        self._fired.add(site)
        out_ND = h_BTD.reshape(-1, h_BTD.shape[-1])
        owned = False
        for group in groups:
            try:
                before_KD = (out_ND if group.tokens_K is None else out_ND.index_select(0, group.tokens_K)).float()
                after_KD = group.compute(before_KD)
                self._meters.record(group.meter_K, before_KD, after_KD)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever an operation raises must end its own rows only
                _log.error("intervention_failed", site=str(site), operation=group.operation, error=repr(error))
                self._failed |= dict.fromkeys(group.rows, f"the intervention at {site} failed")
                continue
            after_KD = after_KD.to(out_ND.dtype)
            if group.tokens_K is None:
                out_ND = after_KD
            else:
                out_ND = (out_ND if owned else out_ND.clone()).index_copy_(0, group.tokens_K, after_KD)
            owned = True
        return out_ND.view_as(h_BTD) if owned else None
