"""The suites by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.suites import (
    activations,
    growth,
    interventions,
    long,
    mapping,
    memory,
    prefix,
    roofline,
    simultaneous,
    skewed,
    staggered,
    startup,
    sweep,
)


@dataclass(frozen=True)
class Suite:
    """``minutes`` is what a full run takes on two quiet cores with every peer installed."""

    run: Callable[[Bench], None]
    summary: str
    minutes: float


SUITES = {
    "simultaneous": Suite(simultaneous.run, "1, 8, 32 and 128 equal requests at once", 9),
    "staggered": Suite(staggered.run, "32 and 256 requests of mixed lengths, Poisson arrivals", 6),
    "long": Suite(long.run, "32 contexts of 512 tokens", 2.5),
    "skewed": Suite(skewed.run, "one context of 1024 tokens among 31 of 64", 2.5),
    "prefix": Suite(prefix.run, "chats behind one system prompt of 512 tokens", 2.2),
    "interventions": Suite(interventions.run, "what interventions cost, and one batch against one by one", 2.5),
    "sweep": Suite(sweep.run, "sites by strengths in shared batches against one request at a time", 6),
    "memory": Suite(memory.run, "memory over the weights", 1.5),
    "startup": Suite(startup.run, "from the command to a server that answers", 1),
    "growth": Suite(growth.run, "speed and memory against rows, context, sites, distinct interventions", 1.5),
    "activations": Suite(activations.run, "collecting activations against the bare forward; memory of a wide fit", 4),
    "mapping": Suite(mapping.run, "maps between two models that others trained, layer by layer", 4),
    "roofline": Suite(roofline.run, "share of what the machine could do", 1.5),
}
