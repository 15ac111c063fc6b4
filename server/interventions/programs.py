"""The steps of a static plan: buffers that are filled between replays, and what a replay computes from them.

Shapes: R rows of one token each, D width, V directions; M mappers with room for C rows each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.linalg import vecdot

from mappers.sites import Site
from server.interventions import operations
from server.interventions.bank import Family, MapperStack
from server.interventions.draft import Member, Reader
from server.interventions.gates import open_for
from server.interventions.meter import MeterBank
from server.interventions.structure import NotStatic, Step, by_mapper, mapper_at


class Directions:
    """A buffer of V directions, filled from the front with those that are wanted; rows share what is the same."""

    def __init__(self, directions_VD: Tensor, made: Callable[[Tensor], Tensor] = lambda v_VD: v_VD) -> None:
        self.directions_VD = directions_VD
        self._made = made
        self._held: dict[int, tuple[int, Tensor]] = {}

    def load(self, directions: Sequence[Tensor]) -> list[int]:
        """Copies directions that are new; returns the place of each."""
        wanted = {id(v_D): v_D for v_D in directions}
        self._held = {key: held for key, held in self._held.items() if key in wanted}
        taken = {place for place, _ in self._held.values()}
        free = (place for place in range(len(self.directions_VD)) if place not in taken)
        new = {key: (next(free), v_D) for key, v_D in wanted.items() if key not in self._held}
        if new:
            new_VD = self._made(torch.stack([v_D for _, v_D in new.values()]))
            places_V = torch.tensor([place for place, _ in new.values()], device=new_VD.device)
            self.directions_VD.index_copy_(0, places_V, new_VD)
            self._held |= new
        return [self._held[id(v_D)][0] for v_D in directions]


class Steering:
    """Buffers of a step without mappers: a direction for each row."""

    def __init__(self, step: Step, directions_VD: Tensor) -> None:
        if step.kind.form != directions_VD.shape[1:]:
            raise NotStatic(f"a direction at {step.site} is not {directions_VD.shape[1]} wide")
        self._operation = step.kind.operation
        self._directions = (
            Directions(directions_VD) if step.kind.operation == "add" else Directions(directions_VD, operations.unit)
        )

    def load(self, site: Site, members: Sequence[Member]) -> list[int]:
        """Copies directions that are new; returns the one of each member as a place in the buffer."""
        return self._directions.load([cast(Tensor, member.active.resolved.effects[site]) for member in members])

    def compute(self, h_RD: Tensor, settings_3R: Tensor, source_R: Tensor) -> Tensor:
        """The operation on every row, whatever the idle ones hold."""
        strength_R, low_R, high_R = settings_3R
        v_RD = self._directions.directions_VD.index_select(0, source_R)
        return operations.steer(self._operation, h_RD, v_RD, strength_R, low_R, high_R)


class Watch:
    """Buffers of one gate of each row at one site; rows without one are held by nobody's place, closed."""

    def __init__(self, weights_VD: Tensor) -> None:
        rows, device = len(weights_VD), weights_VD.device
        self._weights = Directions(weights_VD)
        self._settings_3R = torch.zeros(3, rows, device=device)
        self._numbers_3R = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self._counts_R4 = torch.zeros(rows, 4, dtype=torch.int64, device=device)
        self._row_R = torch.arange(rows, device=device)

    def load(self, readers: Sequence[Reader]) -> None:
        """Writes what the gates of this step are."""
        probes = [reader.gate.probe for reader in readers]
        if any(probe.weight_D.shape != self._weights.directions_VD.shape[1:] for probe in probes):
            raise NotStatic(f"a probe is not {self._weights.directions_VD.shape[1]} wide")
        rows = len(self._row_R)
        settings_3R = [[0.0] * rows for _ in range(3)]
        numbers_3R = [[0] * rows for _ in range(3)]
        counts_R4 = [[0] * 4 for _ in range(rows)]
        sources = self._weights.load([probe.weight_D for probe in probes])
        for reader, probe, source in zip(readers, probes, sources, strict=True):
            mark, row = reader.gate.mark, reader.first
            for column, value in zip(settings_3R, (probe.bias, mark.on, mark.off), strict=True):
                column[row] = value
            for numbers, number in zip(numbers_3R, (mark.hold, reader.active.meter, source), strict=True):
                numbers[row] = number
            (counts_R4[row],) = reader.counts()
        self._settings_3R.copy_(torch.tensor(settings_3R))
        self._numbers_3R.copy_(torch.tensor(numbers_3R))
        self._counts_R4.copy_(torch.tensor(counts_R4))

    def read(self, h_RD: Tensor, meters: MeterBank) -> Tensor:
        """Which gates are open after the row's token, ``(R,)``; keeps state and counts in ``meters``."""
        bias_R, on_R, off_R = self._settings_3R
        hold_R, place_R, source_R = self._numbers_3R
        score_R = vecdot(h_RD, self._weights.directions_VD.index_select(0, source_R)) + bias_R
        # What rows without a gate hold, and be it NaN, must not reach a place that all of them share.
        score_R = torch.where(hold_R > 0, score_R, 0.0)
        left_R = open_for(score_R, on_R, off_R, hold_R, meters.left_N.index_select(0, place_R), self._row_R)
        meters.left_N.index_copy_(0, place_R, left_R)
        open_R = left_R > 0
        meters.count(place_R, score_R, open_R, self._counts_R4)
        return open_R


class Switching:
    """Buffers of a step with mappers: their weights stacked, and which rows go through which."""

    def __init__(self, step: Step, stacks: dict[Hashable, MapperStack], device: str | torch.device) -> None:
        family = step.kind.form
        if not isinstance(family, Family):
            raise NotStatic(f"a mapper at {step.site} is of an unknown class and cannot be stacked")
        place = (step.site, step.turn, family, step.mappers)
        if place not in stacks:
            stacks[place] = MapperStack(family, device, step.mappers)
        self._stack = stacks[place]
        self._edition = self._stack.edition
        self._into_MC = torch.zeros(step.mappers, step.rows, dtype=torch.int64, device=device)

    @property
    def outdated(self) -> bool:
        """Whether another plan gave slots of the shared stack to other mappers."""
        return self._edition != self._stack.edition

    def load(self, site: Site, members: Sequence[Member]) -> list[int]:
        """Copies mappers that are new and leads each row to its own; returns where each member's result lies."""
        users = by_mapper(site, members)
        try:
            slots = self._stack.place([mapper_at(site, using[0]) for using in users.values()])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotStatic(f"a mapper at {site} does not have the shape it should have") from error
        self._edition = self._stack.edition
        stacked, room = self._into_MC.shape
        if stacked == 1:
            return [member.tokens[0] for member in members]
        into_MC = [[0] * room for _ in range(stacked)]
        source = {}
        for slot, using in zip(slots, users.values(), strict=True):
            for place, member in enumerate(using):
                into_MC[slot][place] = member.tokens[0]
                source[member.tokens[0]] = slot * room + place
        self._into_MC.copy_(torch.tensor(into_MC))
        return [source[member.tokens[0]] for member in members]

    def compute(self, h_RD: Tensor, settings_3R: Tensor, source_R: Tensor) -> Tensor:
        """The switch on every row, whatever the idle ones hold."""
        return operations.switch(h_RD, lambda x_RD: self._mapped(x_RD, source_R), settings_3R[0])

    def _mapped(self, x_RD: Tensor, source_R: Tensor) -> Tensor:
        stacked, room = self._into_MC.shape
        if stacked == 1:
            return self._stack.apply(x_RD[None])[0]
        x_MCD = x_RD.index_select(0, self._into_MC.view(-1)).view(stacked, room, -1)
        return self._stack.apply(x_MCD).view(stacked * room, -1).index_select(0, source_R)
