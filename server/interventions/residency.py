"""Which artifacts stay on the device, within a budget of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakSet, WeakValueDictionary

from torch import Tensor

from mappers.drift import DriftMonitor
from mappers.modules import Mapper
from mappers.probes import Probe
from mappers.sites import Site

Effects = Mapping[Site, Tensor] | Mapping[Site, Mapper]
"""A direction ``v_D`` or a mapper for each site."""


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class ResidentArtifact:
    """An artifact's tensors on the device: what it does at each site, or what it reads. ``nbytes`` counts them."""

    kind: str
    digest: str
    effects: Effects = field(default_factory=dict)
    probes: Mapping[Site, Probe] = field(default_factory=dict)
    monitors: Mapping[Site, DriftMonitor] = field(default_factory=dict)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        held = (*self.effects.values(), *self.probes.values(), *self.monitors.values())
        tensors = {id(tensor): tensor for one in held for tensor in _tensors(one)}
        object.__setattr__(self, "nbytes", sum(tensor.nbytes for tensor in tensors.values()))


class Residency:
    """Artifacts by id, the least recently used let go where they need more than ``budget_bytes``; thread safe.

    An artifact that is let go while somebody holds it stays shared and counted until the last holder is gone, so the
    budget can be exceeded by what running requests use, and by that alone.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._kept: dict[str, ResidentArtifact] = {}  # oldest use first
        self._known: WeakValueDictionary[str, ResidentArtifact] = WeakValueDictionary()
        self._alive: WeakSet[ResidentArtifact] = WeakSet()
        self._reading: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._forgotten = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all artifacts on the device, those included that only running requests still hold."""
        with self._lock:
            return self._count()

    @property
    def ids(self) -> frozenset[str]:
        """Ids of all artifacts on the device; forgotten ones are not counted."""
        with self._lock:
            return frozenset(self._known)

    def get(self, artifact_id: str, read: Callable[[], ResidentArtifact]) -> ResidentArtifact:
        """The artifact as it is, or as ``read`` gives it; threads that ask for one at the same time read it once."""
        with self._lock:
            reading = self._reading.setdefault(artifact_id, threading.Lock())
        with reading:
            with self._lock:
                forgotten = self._forgotten
                found = self._known.get(artifact_id)
                if found is not None:
                    self._keep(artifact_id, found)
                    return found
            made = read()
            with self._lock:
                self._alive.add(made)
                if forgotten == self._forgotten:
                    self._known[artifact_id] = made
                    self._keep(artifact_id, made)
            return made

    def forget(self, artifact_id: str) -> None:
        """Lets an artifact go that must not be found again; who holds it keeps it."""
        with self._lock:
            self._forgotten += 1
            self._kept.pop(artifact_id, None)
            self._known.pop(artifact_id, None)

    def _keep(self, artifact_id: str, artifact: ResidentArtifact) -> None:
        known = self._kept.pop(artifact_id, None) is not None
        self._kept[artifact_id] = artifact
        while not known and self._kept and self._count() > self._budget_bytes:
            del self._kept[next(iter(self._kept))]

    def _count(self) -> int:
        return sum(artifact.nbytes for artifact in self._alive)


def _tensors(effect: Tensor | Mapper | Probe | DriftMonitor) -> list[Tensor]:
    if isinstance(effect, Probe):
        return [effect.weight_D]
    if isinstance(effect, DriftMonitor):
        return list(effect.tensors().values())
    return [effect] if isinstance(effect, Tensor) else list(effect.parameters())
