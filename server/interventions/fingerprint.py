"""What shaped the keys and values of a stretch of text, so that they are reused only where the same would shape them.

A change of the output of block L leaves the keys and values of layers 0 to L as they were, since those are computed
from the outputs of lower blocks. Requests whose interventions agree below site L therefore share them up to that layer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mappers.sites import Site
from server.interventions.catalog import ResolvedIntervention
from server.interventions.gates import GateMark
from server.interventions.positions import active_offsets
from server.types import Operation


@dataclass(frozen=True, slots=True)
class Mark:
    """One intervention at one site, with the positions that it touches before some end, while its gate is open.

    Equal marks change alike, over equal activations.
    """

    site: Site
    operation: Operation
    digest: str
    strength: float
    minimum: float
    maximum: float
    positions: tuple[int, ...] | range
    gate: GateMark | None


Fingerprint = tuple[Mark | GateMark, ...]
"""Marks by site from the lowest, at one site in the order in which they act; empty where nothing is touched.

A gate has a mark where it reads, whatever is touched: what it has read so far shapes what comes after.
"""


def fingerprints(
    interventions: Iterable[ResolvedIntervention], prompt_len: int, ends: Sequence[int]
) -> list[Fingerprint]:
    """For each of the increasing ``ends`` what shapes positions ``0 .. end``."""
    made: list[list[Mark | GateMark]] = [[] for _ in ends]
    for resolved in interventions:
        if resolved.strength == 0.0 or not ends:
            continue
        offsets = active_offsets(resolved.apply, 0, ends[-1], prompt_len)
        for marks, end in zip(made, ends, strict=True):
            if resolved.gate_mark is not None:
                marks.append(resolved.gate_mark)
            before = _before(offsets, end)
            if not before:
                continue
            marks += (
                Mark(
                    site,
                    resolved.operation,
                    resolved.digest,
                    resolved.strength,
                    resolved.minimum,
                    resolved.maximum,
                    before,
                    resolved.gate_mark,
                )
                for site in resolved.sites
            )
    return [tuple(sorted(marks, key=lambda mark: mark.site)) for marks in made]


def layers_shared(one: Fingerprint, other: Fingerprint, layers: int) -> int:
    """How many of the lowest ``layers`` have the same keys and values under both."""
    if one == other:
        return layers
    lowest = min(
        layer for layer in {mark.site.layer for mark in (*one, *other)} if _at(one, layer) != _at(other, layer)
    )
    return min(lowest + 1, layers)


def _at(marks: Fingerprint, layer: int) -> list[Mark | GateMark]:
    return [mark for mark in marks if mark.site.layer == layer]


def _before(offsets: Sequence[int], end: int) -> tuple[int, ...] | range:
    """The positions before ``end``; a range where there is no gap, so that equal sets compare equal."""
    before = offsets[: bisect_left(offsets, end)]
    if before and before[-1] - before[0] + 1 == len(before):
        return range(before[0], before[-1] + 1)
    return tuple(before)
