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

Shapes: R rows of one token each, D width, S steps, F sites, V directions, N meters; of one step M mappers with room for
C rows each.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mappers.modules import Mapper
from mappers.sites import Site
from server.interventions import operations
from server.interventions.bank import Family, MapperStack, power_of_two
from server.interventions.draft import Draft, Kind, Member, PlanRow, Touched, commit
from server.interventions.meter import MeterBank, relative_change


class NotStatic(ValueError):
    """A static plan cannot do this: make one of another structure, or take the eager plan."""


@dataclass(frozen=True, slots=True)
class Step:
    """One kind of operation in one turn at one site.

    ``mappers`` and ``rows`` are powers of two: room for that many mappers and, if it is more than one, for that many
    rows of each. Both are 0 for an operation without mappers.
    """

    site: Site
    turn: int
    kind: Kind
    mappers: int = 0
    rows: int = 0

    @classmethod
    def of(cls, site: Site, turn: int, kind: Kind, members: Sequence[Member]) -> Step:
        """The least room that ``members`` need."""
        if kind.operation != "switch":
            return cls(site, turn, kind)
        users = _by_mapper(site, members)
        if len(users) == 1:
            return cls(site, turn, kind, mappers=1)
        return cls(site, turn, kind, power_of_two(len(users)), power_of_two(max(map(len, users.values()))))

    def has_room(self, needed: Step) -> bool:
        """Whether this step of the same kind has the room of ``needed``."""
        if 1 in (self.mappers, needed.mappers):  # a single mapper takes all rows, without routing
            return self.mappers == needed.mappers
        return self.mappers >= needed.mappers and self.rows >= needed.rows


@dataclass(frozen=True, slots=True)
class Structure:
    """What a captured forward does whatever the buffers hold: its steps in the order of application."""

    steps: tuple[Step, ...]

    @classmethod
    def of(cls, rows: Sequence[PlanRow]) -> Structure:
        """The smallest structure for ``rows``, the same in whatever order they stand."""
        return cls(tuple(Step.of(*asked) for asked in _sorted(Draft.collect(rows))))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites that have to fire, from the lowest."""
        return tuple(sorted({step.site for step in self.steps}))


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
        self._numbers = {(step.site, step.turn, step.kind): number for number, step in enumerate(steps)}
        # Plain numbers as keys: a compiler looks them up while it traces.
        self._at_layer = {
            site.layer: (fired, [number for number, step in enumerate(steps) if step.site == site])
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
        asked = [(self._number(Step.of(*one)), one) for one in _sorted(draft)]
        settings_S3R = [[[0.0] * self.max_rows for _ in range(3)] for _ in self._programs]
        places_S2R = [[[0] * self.max_rows for _ in range(2)] for _ in self._programs]
        self._rows_at = {}
        for number, (site, _, _, members) in asked:
            sources = self._programs[number].load(site, members)
            (strength_R, low_R, high_R), (meter_R, source_R) = settings_S3R[number], places_S2R[number]
            for member, source in zip(members, sources, strict=True):
                (token,), used = member.tokens, member.active.resolved
                strength_R[token], low_R[token], high_R[token] = used.strength, used.minimum, used.maximum
                meter_R[token], source_R[token] = member.active.meter, source
                self._rows_at.setdefault(site, set()).add(member.row)
        for buffer, values in ((self._settings_S3R, settings_S3R), (self._places_S2R, places_S2R)):
            buffer.copy_(torch.tensor(values, dtype=buffer.dtype).view_as(buffer))
        self.touched = draft.touched

    def apply(self, site: Site, h_RD: Tensor) -> Tensor:
        """The activations after everything planned at ``site``; ``h_RD`` itself stays as it is."""
        if site.layer not in self._at_layer:
            return h_RD
        fired, numbers = self._at_layer[site.layer]
        self.fired_F[fired].add_(1)
        for number in numbers:
            settings_3R, places_2R = self._settings_S3R[number], self._places_S2R[number]
            before_RD = h_RD.float()
            after_RD = self._programs[number].compute(before_RD, settings_3R, places_2R[1])
            # A strength of 0 is never planned: it marks the rows that this step leaves alone.
            idle_R = settings_3R[0] == 0
            change_R = relative_change(before_RD, after_RD).masked_fill(idle_R, 0.0)
            self._sums_N.index_add_(0, places_2R[0], change_R)
            h_RD = torch.where(idle_R[:, None], h_RD, after_RD.to(h_RD.dtype))
        return h_RD

    def _number(self, needed: Step) -> int:
        number = self._numbers.get((needed.site, needed.turn, needed.kind))
        if number is not None and self.structure.steps[number].has_room(needed):
            return number
        raise NotStatic(f"this plan has no room for '{needed.kind.operation}' in turn {needed.turn} at {needed.site}")


class Steering:
    """Buffers of a step without mappers: a direction for each row, shared by rows that use the same."""

    def __init__(self, step: Step, directions_VD: Tensor) -> None:
        if step.kind.form != directions_VD.shape[1:]:
            raise NotStatic(f"a direction at {step.site} is not {directions_VD.shape[1]} wide")
        self._operation = step.kind.operation
        self._directions_VD = directions_VD
        self._held: dict[int, tuple[int, Tensor]] = {}

    def load(self, site: Site, members: Sequence[Member]) -> list[int]:
        """Copies directions that are new; returns the one of each member as a place in the buffer."""
        directions = [cast(Tensor, member.active.resolved.effects[site]) for member in members]
        wanted = {id(v_D): v_D for v_D in directions}
        self._held = {key: held for key, held in self._held.items() if key in wanted}
        taken = {place for place, _ in self._held.values()}
        free = (place for place in range(len(self._directions_VD)) if place not in taken)
        new = {key: (next(free), v_D) for key, v_D in wanted.items() if key not in self._held}
        if new:
            new_VD = torch.stack([v_D for _, v_D in new.values()])
            new_VD = new_VD if self._operation == "add" else operations.unit(new_VD)
            places_V = torch.tensor([place for place, _ in new.values()], device=new_VD.device)
            self._directions_VD.index_copy_(0, places_V, new_VD)
            self._held |= new
        return [self._held[id(v_D)][0] for v_D in directions]

    def compute(self, h_RD: Tensor, settings_3R: Tensor, source_R: Tensor) -> Tensor:
        """The operation on every row, whatever the idle ones hold."""
        strength_R, low_R, high_R = settings_3R
        v_RD = self._directions_VD.index_select(0, source_R)
        return operations.steer(self._operation, h_RD, v_RD, strength_R, low_R, high_R)


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
        users = _by_mapper(site, members)
        try:
            slots = self._stack.place([_mapper(site, using[0]) for using in users.values()])
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


def _sorted(draft: Draft) -> Iterator[tuple[Site, int, Kind, list[Member]]]:
    for (site, turn), kinds in sorted(draft.steps.items()):
        for kind in sorted(kinds, key=repr):
            yield site, turn, kind, kinds[kind]


def _by_mapper(site: Site, members: Iterable[Member]) -> dict[int, list[Member]]:
    users: dict[int, list[Member]] = {}
    for member in members:
        users.setdefault(id(_mapper(site, member)), []).append(member)
    return users


def _mapper(site: Site, member: Member) -> Mapper:
    return cast(Mapper, member.active.resolved.effects[site])
