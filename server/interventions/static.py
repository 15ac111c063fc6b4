"""The plan of decode steps in buffers that never move, for a forward that is captured once and replayed.

A captured forward (a CUDA graph, a compiled graph) runs no Python, so what it does may depend on the contents of
tensors alone. The *structure* of a plan (which sites, which operations in which turn, room for how many mappers) is
what is captured, and the key under which a capture is kept. All else is *data*: which rows, strengths, bounds,
directions, mappers, meter places. It lies in buffers that :meth:`StaticPlan.fill` writes between replays.

    structure = Structure.of(rows)                       # the key
    static = StaticPlan(structure, max_rows, width, device, meters)
    h_RD = static.apply(site, h_RD)                      # in the captured forward, at every site
    static.fill(rows)                                    # before the first replay, and when rows or settings differ
    static.begin()                                       # before each replay
    static.unfired()                                     # after it: sites that did not run exactly once

Every step computes all R rows and *selects* by ``torch.where``: a row that is not touched keeps its very bits, whatever
its neighbours hold. Nothing is read back to the host and no shape depends on data.

Shapes: R rows of one token each, D width, S steps, F sites, N meters, X gates of all rows.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence

import torch
from torch import Tensor

from mappers.sites import Site
from server.interventions.bank import MapperStack
from server.interventions.draft import Draft, PlanRow, Touched, commit
from server.interventions.meter import MeterBank, relative_change
from server.interventions.programs import Steering, Switching, Watch
from server.interventions.structure import NotStatic, Step, Structure, sorted_steps


class StaticPlan:
    """The buffers of one structure and the tensor program over them; for the engine's thread alone.

    It serves all rows that need no more than its structure has, also fewer operations or mappers. ``fired_F`` counts
    on the device how often each of ``sites`` ran since :meth:`begin`; an engine may fetch it along with its tokens.
    Plans that are given the same ``stacks`` hold the weights of mappers once: each has to be filled again before it
    is replayed after another.
    """

    def __init__(
        self,
        structure: Structure,
        max_rows: int,
        width: int,
        device: str | torch.device,
        meters: MeterBank,
        stacks: dict[Hashable, MapperStack] | None = None,
    ) -> None:
        """Makes the buffers. Raises NotStatic for directions not ``width`` wide and mappers of an unknown class."""
        steps = structure.steps
        self.structure = structure
        self.sites = structure.sites
        self.max_rows = max_rows
        self.touched: tuple[Touched, ...] = ()
        self.fired_F = torch.zeros(len(self.sites), dtype=torch.int64, device=device)
        self._rows_at: dict[Site, set[int]] = {}
        self._meters, self._sums_N = meters, meters.sums_N
        self._settings_S3R = torch.zeros(len(steps), 3, max_rows, device=device)
        self._places_S2R = torch.zeros(len(steps), 2, max_rows, dtype=torch.int64, device=device)
        stacks = {} if stacks is None else stacks
        self._programs = [
            Switching(step, stacks, device)
            if step.mappers
            else Steering(step, torch.zeros(max_rows, width, device=device))
            for step in steps
        ]
        self._watches = [Watch(torch.zeros(max_rows, width, device=device)) for _ in structure.readings]
        # One entry for each gate of each row, and an open one for what has no gate.
        self._open_X = torch.zeros(len(self._watches) * max_rows + 1, dtype=torch.bool, device=device)
        self._open_X[-1] = True
        self._gates_SR = torch.zeros(len(steps), max_rows, dtype=torch.int64, device=device)
        self._numbers = {(step.site, step.turn, step.kind): number for number, step in enumerate(steps)}
        # Plain numbers as keys: a compiler looks them up while it traces.
        self._at_layer = {
            site.layer: (
                fired,
                [place for place, (read, _) in enumerate(structure.readings) if read == site],
                [number for number, step in enumerate(steps) if step.site == site],
            )
            for fired, site in enumerate(self.sites)
        }

    def rows_at(self, site: Site) -> frozenset[int]:
        """Batch rows that have something planned at ``site``."""
        return frozenset(self._rows_at.get(site, ()))

    def begin(self) -> None:
        """Starts counting anew which sites run. Raises RuntimeError where mappers were moved since :meth:`fill`."""
        if any(isinstance(program, Switching) and program.outdated for program in self._programs):
            raise RuntimeError("another plan moved the mappers of this one: fill it again before it is replayed")
        self.fired_F.zero_()

    def unfired(self) -> tuple[Site, ...]:
        """Sites that did not run exactly once since :meth:`begin`: their rows have failed. Synchronises."""
        return tuple(site for site, count in zip(self.sites, self.fired_F.tolist(), strict=True) if count != 1)

    def commit(self, failed: Container[int]) -> None:
        """Counts the touched tokens of rows that did not fail; call after each replay."""
        commit(self.touched, failed)

    def fill(self, rows: Sequence[PlanRow]) -> None:
        """Writes what ``rows`` ask for into the buffers; ``row.first`` is the place of a row's one token.

        Raises NotStatic where ``rows`` need more than this plan has, compute more than a token each or hold a mapper
        that cannot be stacked, and where the meters were enlarged since. Nothing may be replayed then before the next
        :meth:`fill`.
        """
        if any(row.count != 1 or row.first >= self.max_rows for row in rows):
            raise NotStatic(f"a static plan has {self.max_rows} rows of one token each")
        if self._meters.sums_N is not self._sums_N:
            raise NotStatic("the meters were enlarged: what was captured would go on writing to the old ones")
        draft = Draft.collect(rows)
        asked = [(self._number(Step.of(*one)), one) for one in sorted_steps(draft)]
        settings_S3R = [[[0.0] * self.max_rows for _ in range(3)] for _ in self._programs]
        places_S2R = [[[0] * self.max_rows for _ in range(2)] for _ in self._programs]
        self._rows_at = {}
        gates = self._watch(draft)
        gates_SR = [[len(self._open_X) - 1] * self.max_rows for _ in self._programs]
        for number, (site, _, _, members) in asked:
            sources = self._programs[number].load(site, members)
            (strength_R, low_R, high_R), (meter_R, source_R) = settings_S3R[number], places_S2R[number]
            for member, source in zip(members, sources, strict=True):
                (token,), used = member.tokens, member.active.resolved
                strength_R[token], low_R[token], high_R[token] = used.strength, used.minimum, used.maximum
                meter_R[token], source_R[token] = member.active.meter, source
                gates_SR[number][token] = gates.get(id(member.gate), len(self._open_X) - 1)
                self._rows_at.setdefault(site, set()).add(member.row)
        for buffer, values in (
            (self._settings_S3R, settings_S3R),
            (self._places_S2R, places_S2R),
            (self._gates_SR, gates_SR),
        ):
            buffer.copy_(torch.tensor(values, dtype=buffer.dtype).view_as(buffer))
        self.touched = draft.touched

    def apply(self, site: Site, h_RD: Tensor) -> Tensor:
        """The activations after everything planned at ``site``; ``h_RD`` itself stays as it is."""
        if site.layer not in self._at_layer:
            return h_RD
        fired, watches, numbers = self._at_layer[site.layer]
        self.fired_F[fired].add_(1)
        for place in watches:
            open_R = self._watches[place].read(h_RD.float(), self._meters)
            self._open_X[place * self.max_rows : (place + 1) * self.max_rows] = open_R
        for number in numbers:
            settings_3R, places_2R = self._settings_S3R[number], self._places_S2R[number]
            before_RD = h_RD.float()
            after_RD = self._programs[number].compute(before_RD, settings_3R, places_2R[1])
            # A strength of 0 is never planned: it marks the rows that this step leaves alone.
            idle_R = settings_3R[0] == 0
            if self._watches:
                idle_R = idle_R | ~self._open_X.index_select(0, self._gates_SR[number])
            change_R = relative_change(before_RD, after_RD).masked_fill(idle_R, 0.0)
            self._sums_N.index_add_(0, places_2R[0], change_R)
            h_RD = torch.where(idle_R[:, None], h_RD, after_RD.to(h_RD.dtype))
        return h_RD

    def _watch(self, draft: Draft) -> dict[int, int]:
        """Fills the buffers of the gates; returns where in the mask of open gates each reader finds its own."""
        places: dict[int, int] = {}
        for place, (key, watch) in enumerate(zip(self.structure.readings, self._watches, strict=True)):
            readers = draft.readers.pop(key, [])
            watch.load(readers)
            for reader in readers:
                places[id(reader)] = place * self.max_rows + reader.first
                self._rows_at.setdefault(key[0], set()).add(reader.row)
        if draft.readers:
            raise NotStatic(f"this plan has no room for the gates at {min(draft.readers)[0]}")
        return places

    def _number(self, needed: Step) -> int:
        number = self._numbers.get((needed.site, needed.turn, needed.kind))
        if number is not None and self.structure.steps[number].has_room(needed):
            return number
        raise NotStatic(f"this plan has no room for '{needed.kind.operation}' in turn {needed.turn} at {needed.site}")
