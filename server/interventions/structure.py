"""What a captured decode step does whatever its buffers hold, and so the key under which it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from mappers.modules import Mapper
from mappers.sites import Site
from server.interventions.bank import power_of_two
from server.interventions.draft import Draft, Kind, Member, PlanRow


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
        users = by_mapper(site, members)
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
    """What a captured forward does whatever the buffers hold: its steps in the order of application.

    ``readings`` are the sites that gates read, once for each gate that some row has there.
    """

    steps: tuple[Step, ...]
    readings: tuple[tuple[Site, int], ...] = ()

    @classmethod
    def of(cls, rows: Sequence[PlanRow]) -> Structure:
        """The smallest structure for ``rows``, the same in whatever order they stand."""
        draft = Draft.collect(rows)
        return cls(tuple(Step.of(*asked) for asked in sorted_steps(draft)), tuple(sorted(draft.readers)))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites that have to fire, from the lowest."""
        return tuple(sorted({step.site for step in self.steps} | {site for site, _ in self.readings}))


def sorted_steps(draft: Draft) -> Iterator[tuple[Site, int, Kind, list[Member]]]:
    """Who undergoes what, in the order of application."""
    for (site, turn), kinds in sorted(draft.steps.items()):
        for kind in sorted(kinds, key=repr):
            yield site, turn, kind, kinds[kind]


def by_mapper(site: Site, members: Iterable[Member]) -> dict[int, list[Member]]:
    """The members that share a mapper, by its id."""
    users: dict[int, list[Member]] = {}
    for member in members:
        users.setdefault(id(mapper_at(site, member)), []).append(member)
    return users


def mapper_at(site: Site, member: Member) -> Mapper:
    """The mapper of a member of a switch."""
    return cast(Mapper, member.active.resolved.effects[site])
