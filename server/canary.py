"""Start-up canaries: before anything is served, every stored switch and vector of the served model is tried once.

The same prompt is read without and with each of them. What was seen the first time is kept in
``<data dir>/canaries/<artifact id>.<dtype>.<device>.json``, and every later start has to see it again: another version
of a library, or a processor that computes wrongly, must not change unnoticed what a switch does.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import structlog

from mappers.artifact import staged_file
from mappers.errors import InterlockError
from server.engine.engine import Engine
from server.engine.request import GenerationRequest
from server.errors import InvalidRequest
from server.interventions.catalog import Catalog, ResolvedIntervention
from server.registry.artifacts import ArtifactRecord, ArtifactStore
from server.types import (
    Event,
    Failed,
    Finished,
    InterventionSpec,
    Operation,
    PromptScored,
    SamplingParams,
    TokensGenerated,
)

_log = structlog.get_logger(__name__)

_PROMPT_TOKENS = 12
_TOP = 20
_LIMIT_S = 120.0
_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "int8": 5e-2, "bfloat16": 1e-1, "int4": 1e-1}
"""Mean difference of log-probabilities (nats) that rounding on another processor may make."""
_ALWAYS_TOLERATED = 0.05
"""That share of the tolerance passes however little an artifact does; beyond it, half of its effect at most."""
_UNUSABLE = frozenset({"artifact_unusable", "unknown_site"})
"""Codes of what is wrong with an artifact, not with the way it is tried."""
_LEFT_BEHIND = "after the canaries the model without interventions no longer computes what it did before"


class CanaryFailed(InterlockError):
    """A canary request ended in an error."""


class EngineSilent(InterlockError):
    """The engine gave no answer at all: nothing can be served."""


@dataclass(frozen=True, slots=True)
class Canary:
    """What one artifact did when it was first tried with these weights; ``failed`` says what was wrong the last time.

    ``logprobs`` are natural logarithms: of each prompt token but the first, then of the likeliest tokens behind it.
    """

    weight_digest: str | None
    logprobs: tuple[float, ...]
    failed: str = ""


def try_artifacts(engine: Engine, catalog: Catalog, artifacts: ArtifactStore, folder: Path) -> None:
    """Tries every switch and vector that was made for the served model, and has ``catalog`` refuse those that fail.

    ``engine`` runs, and nobody else uses it yet. Raises EngineSilent where it does not answer. Where ``folder`` cannot
    be written nothing is remembered, which is logged.
    """
    stored = artifacts.list()
    records = [one for one in stored if one.kind in ("switch", "vector") and _made_for(one, engine)]
    _forget_others(folder, {one.id for one in stored})
    if not records:
        return
    began = time.monotonic()
    resident = catalog.resident_ids
    trial = _Trial(engine, catalog)
    earlier = {one.id: _read(folder / trial.file_name(one)) for one in records}
    found = {one.id: trial.of(one, earlier[one.id]) for one in records}
    if not trial.undisturbed():
        found = {one.id: replace(trial.known(earlier[one.id]), failed=_LEFT_BEHIND) for one in records}
    for record in records:
        canary = found[record.id]
        if canary != earlier[record.id]:
            _keep(folder, trial.file_name(record), canary)
        if record.id not in resident:
            # What lies on the device counts as used; this was only tried.
            catalog.forget(record.id)
        if canary.failed:
            catalog.refuse(record.id, canary.failed)
            _log.error("canary_failed", artifact=record.id, name=record.name, reason=canary.failed)
    _log.info("canaries", artifacts=len(records), seconds=round(time.monotonic() - began, 2))


def kept_canaries(folder: Path) -> Iterator[tuple[str, Canary | None]]:
    """What is known, by ``<artifact id>.<dtype>.<device>``; None for a file that is no canary."""
    for file in sorted(folder.glob("*.json")):
        yield file.name.removesuffix(".json"), _read(file)


class _Trial:
    """One prompt, and what the model says to it without interventions."""

    def __init__(self, engine: Engine, catalog: Catalog) -> None:
        model = engine.info
        self._engine = engine
        self._catalog = catalog
        self._numbers = count()
        chance = random.Random(0)
        tokens = min(_PROMPT_TOKENS, model.context - 1)
        self._prompt = tuple(chance.randrange(model.vocab_size) for _ in range(tokens))
        self._suffix = f"{model.dtype}.{model.device.partition(':')[0]}.json"
        self._tolerance = _TOLERANCE[model.dtype]
        self._off = self._observe(())

    def file_name(self, record: ArtifactRecord) -> str:
        """Of what is known of an artifact as it is served now."""
        return f"{record.id}.{self._suffix}"

    def undisturbed(self) -> bool:
        """Whether the model without interventions still computes, bit for bit, what it did at first."""
        return self._observe(()) == self._off

    def known(self, earlier: Canary | None) -> Canary:
        """What earlier starts have seen, if it was with these weights."""
        weights = self._engine.info.weight_digest
        if earlier is None or earlier.weight_digest != weights:
            return Canary(weights, ())
        return replace(earlier, failed="")

    def of(self, record: ArtifactRecord, earlier: Canary | None) -> Canary:
        """Tries one artifact against what earlier starts have seen."""
        before = self.known(earlier)
        try:
            resolved = self._resolved(record)
            on = [] if resolved is None else self._observe((resolved,))
        except EngineSilent:
            raise
        except InterlockError as error:
            return replace(before, failed=error.message)
        except RuntimeError as error:
            return replace(before, failed=f"it cannot be tried: {str(error).splitlines()[0]}")
        if not on:
            return before
        if not all(map(math.isfinite, on)):
            return replace(before, failed="with it the model's output is not finite")
        if on == self._off:
            return replace(before, failed="with it the model computes exactly what it does without")
        if not before.logprobs:
            return replace(before, logprobs=tuple(on))
        change, effect = _distance(on, before.logprobs), _distance(self._off, before.logprobs)
        allowed = min(self._tolerance, max(effect / 2, _ALWAYS_TOLERATED * self._tolerance))
        if change > allowed:
            reason = f"it no longer does what it did (log-probabilities differ by {change:.2g}, allowed {allowed:.2g})"
            remedy = f"if a new library or machine explains it, remove the file {self.file_name(record)}"
            return replace(before, failed=f"{reason}: {remedy}")
        return before

    def _resolved(self, record: ArtifactRecord) -> ResolvedIntervention | None:
        """A switch as it is; of a vector the direction, because no strength suits all lengths.

        None for a vector without a direction, which only an addition that does nothing can use.
        """
        strength = min(1.0, self._catalog.max_strength)
        operation: Operation = "switch" if record.kind == "switch" else "ablate"
        try:
            found = self._catalog.resolve(InterventionSpec(operation, record.id, strength, param=record.kind))
        except InvalidRequest as error:
            if record.kind == "vector" and error.code not in _UNUSABLE:
                return None
            raise
        return replace(found, strength=1.0)

    def _observe(self, interventions: tuple[ResolvedIntervention, ...]) -> list[float]:
        """Log-probabilities that the engine gives; raises CanaryFailed with its reason, EngineSilent for none."""
        ended = threading.Event()
        events: list[Event] = []

        def take(event: Event) -> None:
            events.append(event)
            if isinstance(event, Finished | Failed):
                ended.set()

        sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=_TOP, prompt_logprobs=0, ignore_eos=True)
        request = GenerationRequest(f"canary-{next(self._numbers)}", self._prompt, sampling, interventions)
        self._engine.submit(request, take)
        if not ended.wait(_LIMIT_S):
            raise EngineSilent(f"the engine did not answer {len(self._prompt)} tokens in {_LIMIT_S:.0f} s")
        logprobs: list[float] = []
        for event in events:
            match event:
                case PromptScored():
                    logprobs += [scored.logprob for scored in event.logprobs]
                case TokensGenerated():
                    # By value, not by token: near ties may change places.
                    logprobs += sorted((value for one in event.logprobs for _, value in one.top), reverse=True)
                case Failed():
                    raise CanaryFailed(event.message)
        return logprobs


def _made_for(record: ArtifactRecord, engine: Engine) -> bool:
    target, model = record.manifest.target, engine.info
    return target is not None and target.fits(model.config_digest, model.weight_digest)


def _distance(found: Sequence[float], kept: Sequence[float]) -> float:
    if len(found) != len(kept):
        return math.inf
    return math.fsum(abs(x - y) for x, y in zip(found, kept, strict=True)) / len(kept)


def _read(file: Path) -> Canary | None:
    """None where there is none, or what is there is no canary."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Canary(content["weight_digest"], tuple(map(float, content["logprobs"])), str(content["failed"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        _log.warning("canary_unreadable", file=file.name, error=type(error).__name__)
        return None


def _keep(folder: Path, name: str, canary: Canary) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with staged_file(folder, name) as file:
            file.write_text(json.dumps(asdict(canary)) + "\n", encoding="utf-8")
    except OSError as error:
        _log.warning("canary_not_kept", file=name, error=error.strerror)


def _forget_others(folder: Path, artifacts: set[str]) -> None:
    for file in folder.glob("*.json"):
        if file.name.partition(".")[0] not in artifacts:
            file.unlink(missing_ok=True)
