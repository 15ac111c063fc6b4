"""Applies the plan of a forward at every block, and knows afterwards what really happened.

Shapes: N tokens of all rows in this forward, D width, K tokens of a round or a group. A model hands its hidden states
over as ``h_BTD``; B times T is N, however the engine packs its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import structlog
import torch
from torch import Tensor

from mappers.architectures import DecoderStack
from mappers.hooks import attach
from mappers.sites import Site
from server.interventions.active import ActiveIntervention
from server.interventions.bank import MapperBank
from server.interventions.gates import Reading
from server.interventions.groups import Group, Round
from server.interventions.meter import MeterBank
from server.interventions.plan import EMPTY_PLAN, BatchPlan
from server.interventions.static import StaticPlan

_log = structlog.get_logger(__name__)


class PlanHooks:
    """Hooks on every block, attached once when the engine starts; what they do is the plan of the running forward.

    A row whose operation raises, or whose site does not fire exactly once, is *failed*: its result of this forward
    must be thrown away. Other rows are not affected. ``noted`` holds, after a forward, for the gates that read a prompt
    their states token by token.
    """

    def __init__(self, stack: DecoderStack, meters: MeterBank) -> None:
        self._meters = meters
        self._bank = MapperBank()
        self._known_plan = self._plan = EMPTY_PLAN
        self._static: StaticPlan | None = None
        self._fired: set[Site] = set()
        self._failed: dict[int, str] = {}
        self._open_X = torch.empty(0, dtype=torch.bool)
        self.noted: dict[ActiveIntervention, Tensor] = {}
        self._handle = attach(stack, {site: partial(self._apply, site) for site in stack.sites})

    def begin(self, plan: BatchPlan) -> None:
        """Sets the plan of the forward that follows."""
        if plan is not self._known_plan:
            self._bank.begin_plan()
        self._known_plan = self._plan = plan
        self._fired.clear()
        self._failed, self.noted = {}, {}
        if plan.readings:
            # Closed until they were read; what has no gate finds the last one, which is open.
            self._open_X = torch.zeros(plan.gated + 1, dtype=torch.bool, device=self._meters.left_N.device)
            self._open_X[-1] = True

    def end(self) -> dict[int, str]:
        """Ends the forward; returns failed batch rows with the reason. Checks sites fired against sites planned.

        The plan is to be committed once nothing of the forward can fail any more.
        """
        plan, self._plan = self._plan, EMPTY_PLAN
        for site in plan.sites - self._fired:
            for row in plan.rows_at(site):
                self._failed[row] = f"the planned intervention at {site} did not run"
        return self._failed

    @contextmanager
    def static(self, plan: StaticPlan) -> Iterator[None]:
        """Within the block every site does what a static plan holds; it keeps its own account of what ran."""
        self._static = plan
        try:
            yield
        finally:
            self._static = None

    def remove(self) -> None:
        """Takes the hooks off the model for good."""
        self._handle.remove()

    def _apply(self, site: Site, h_BTD: Tensor) -> Tensor | None:
        if self._static is not None:
            return self._static.apply(site, h_BTD[0])[None]
        if self._plan is EMPTY_PLAN:
            return None
        rounds, reading = self._plan.rounds.get(site, ()), self._plan.readings.get(site)
        if not rounds and reading is None:
            return None
        if site in self._fired:
            self._failed |= dict.fromkeys(self._plan.rows_at(site), f"the block at {site} ran more than once")
        self._fired.add(site)
        h_ND = out_ND = h_BTD.reshape(-1, h_BTD.shape[-1])
        if reading is not None:
            self._read(site, reading, h_ND)
        for measurement in self._plan.measurements.get(site, ()):
            measurement.take(h_ND, self._meters)
        if not rounds:
            return None
        for one in rounds:
            before_KD = (out_ND if one.tokens_K is None else out_ND.index_select(0, one.tokens_K)).float()
            after_KD = self._run(site, one, before_KD)
            if one.gate_K is not None:
                open_K = self._open_X.index_select(0, one.gate_K)
                after_KD = torch.where(open_K[:, None], after_KD, before_KD)
            self._meters.record(one.meter_K, before_KD, after_KD)
            after_KD = after_KD.to(h_BTD.dtype)
            if one.tokens_K is None:
                out_ND = after_KD
            else:
                # The block's own output stays as it is: it may be held elsewhere.
                out_ND = (out_ND.clone() if out_ND is h_ND else out_ND).index_copy_(0, one.tokens_K, after_KD)
        return out_ND.view_as(h_BTD)

    def _read(self, site: Site, reading: Reading, h_ND: Tensor) -> None:
        """Lets the gates of a site read; where that raises, their rows fail."""
        try:
            left_K = reading.read(h_ND, self._meters)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a gate raises must end its own rows only
            _log.error("gate_failed", site=str(site), error=repr(error))
            self._failed |= dict.fromkeys(reading.rows, f"the gate at {site} failed")
            return
        self._open_X[reading.span] = left_K > 0
        self.noted |= {active: left_K[part] for active, part in reading.noted}

    def _run(self, site: Site, one: Round, h_KD: Tensor) -> Tensor:
        if len(one.groups) == 1:
            return self._compute(site, one.groups[0], h_KD)
        return torch.cat([self._compute(site, group, h_KD[group.span]) for group in one.groups])

    def _compute(self, site: Site, group: Group, h_KD: Tensor) -> Tensor:
        """What the group makes of its tokens; where that raises, its rows fail and their tokens stay as they are."""
        try:
            return group.compute(h_KD, self._bank)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an operation raises must end its own rows only
            if len(group.uses) > 1:
                return torch.cat([self._compute(site, part, h_KD[part.span]) for part in group.parts()])
            _log.error("intervention_failed", site=str(site), operation=group.operation, error=repr(error))
            self._failed |= dict.fromkeys(group.rows, f"the intervention at {site} failed")
            return h_KD
