"""Start-up canaries: before anything is served, every stored switch and vector of the served model is tried once.

The same prompt is read without and with each of them. What was seen the first time is kept in
``<data dir>/canaries/<artifact id>.<dtype>.<device>.json``, and every later start has to see it again: another version
of a library, a damaged mapper or a processor that computes wrongly must not change unnoticed what a switch does.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from mappers.errors import InterlockError
from server.engine.engine import Engine
from server.engine.request import GenerationRequest
from server.interventions.catalog import Catalog, ResolvedIntervention
from server.policy.policy import Policy
from server.policy.profiles import ProfileStore
from server.registry.artifacts import ArtifactRecord, ArtifactStore
from server.types import Event, Failed, Finished, InterventionSpec, PromptScored, SamplingParams, TokensGenerated

_log = structlog.get_logger(__name__)

_PROMPT_TOKENS = 12
_TOP = 20
_LIMIT_S = 120.0
_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "int8": 5e-2, "bfloat16": 1e-1, "int4": 1e-1}
"""Mean difference of log-probabilities, each relative where it is larger than 1 nat: rounding on other processors."""


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

    ``engine`` runs, and nobody else uses it yet. Raises TimeoutError where it does not answer.
    """
    model = engine.info
    records = [one for one in artifacts.list() if one.kind in ("switch", "vector") and _made_for(one, engine)]
    suffix = f".{model.dtype}.{model.device.partition(':')[0]}.json"
    _forget_others(folder, {one.id for one in artifacts.list()})
    if not records:
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    began = time.monotonic()
    prompt = _prompt(model.vocab_size, min(_PROMPT_TOKENS, model.context - 1))
    off = _observed(engine, prompt, ())
    tolerance = _TOLERANCE[model.dtype]
    found = [_tried(engine, catalog, one, prompt, off, folder / f"{one.id}{suffix}", tolerance) for one in records]
    if _observed(engine, prompt, ()) != off:
        found = [replace(canary, failed=_LEFT_BEHIND) for canary in found]
    for record, canary in zip(records, found, strict=True):
        _write(folder / f"{record.id}{suffix}", canary)
        if canary.failed:
            catalog.refuse(record.id, canary.failed)
            _log.error("canary_failed", artifact=record.id, name=record.name, reason=canary.failed)
    _log.info("canaries", artifacts=len(records), seconds=round(time.monotonic() - began, 2))


_LEFT_BEHIND = "after the canaries the model without interventions no longer computes what it did before"


def not_ready(catalog: Catalog, profiles: ProfileStore, policy: Policy) -> str | None:
    """Why nothing should be sent here: an artifact that a profile or the default switch needs failed its canary."""
    for identity, reason in catalog.refused.items():
        users = [f"profile {name}" for name in profiles.bound_to(identity)]
        if identity == policy.switch_artifact:
            users.append("the default switch")
        if users:
            return f"the canary of artifact {identity[:12]}, which {users[0]} needs, failed: {reason}"
    return None


def kept_canaries(folder: Path) -> dict[str, Canary]:
    """Artifact id -> what is known of it; raises ValueError, naming it, for a file that is no canary."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        canary = _read(file)
        if canary is None:
            raise ValueError(f"{file} cannot be read")
        found[file.name.partition(".")[0]] = canary
    return found


def _made_for(record: ArtifactRecord, engine: Engine) -> bool:
    target, model = record.manifest.target, engine.info
    return target is not None and target.fits(model.config_digest, model.weight_digest)


def _prompt(vocabulary: int, tokens: int) -> tuple[int, ...]:
    chance = random.Random(0)
    return tuple(chance.randrange(vocabulary) for _ in range(tokens))


def _tried(
    engine: Engine,
    catalog: Catalog,
    record: ArtifactRecord,
    prompt: tuple[int, ...],
    off: Sequence[float],
    file: Path,
    tolerance: float,
) -> Canary:
    weights = engine.info.weight_digest
    known = _read(file)
    if known is not None and known.weight_digest != weights:
        known = None
    before = Canary(weights, ()) if known is None else replace(known, failed="")
    try:
        wanted = InterventionSpec("switch" if record.kind == "switch" else "add", record.id, param=record.kind)
        on = _observed(engine, prompt, (catalog.resolve(wanted),))
    except InterlockError as error:
        return replace(before, failed=error.message)
    if not all(map(math.isfinite, on)):
        return replace(before, failed="with it the model's output is not finite")
    if on == off:
        return replace(before, failed="with it the model computes exactly what it does without")
    if not before.logprobs:
        return replace(before, logprobs=tuple(on))
    change = _distance(on, before.logprobs)
    if change > tolerance:
        reason = f"it no longer does what it did (log-probabilities differ by {change:.2g}, allowed {tolerance:g}): "
        return replace(before, failed=f"{reason}if a new library or machine explains it, remove {file.name}")
    return before


def _distance(found: Sequence[float], kept: Sequence[float]) -> float:
    if len(found) != len(kept):
        return math.inf
    return math.fsum(abs(x - y) / max(1.0, abs(y)) for x, y in zip(found, kept, strict=True)) / len(kept)


class CanaryFailed(InterlockError):
    """A canary request ended in an error."""


def _observed(engine: Engine, prompt: tuple[int, ...], interventions: tuple[ResolvedIntervention, ...]) -> list[float]:
    """Log-probabilities that the engine gives; raises CanaryFailed with its reason, TimeoutError for none at all."""
    ended = threading.Event()
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished | Failed):
            ended.set()

    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=_TOP, prompt_logprobs=0, ignore_eos=True)
    engine.submit(GenerationRequest("canary", prompt, sampling, interventions), take)
    if not ended.wait(_LIMIT_S):
        raise TimeoutError(f"the engine did not answer a prompt of {len(prompt)} tokens in {_LIMIT_S:.0f} s")
    logprobs: list[float] = []
    for event in events:
        match event:
            case PromptScored():
                logprobs += [scored.logprob for scored in event.logprobs]
            case TokensGenerated():
                # By value, not by token: near ties may change places.
                logprobs += sorted((value for scored in event.logprobs for _, value in scored.top), reverse=True)
            case Failed():
                raise CanaryFailed(event.message)
    return logprobs


def _read(file: Path) -> Canary | None:
    """None where there is none, or what is there is no canary."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Canary(content["weight_digest"], tuple(map(float, content["logprobs"])), str(content["failed"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(file: Path, canary: Canary) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(canary)) + "\n", encoding="utf-8")
    partial.replace(file)


def _forget_others(folder: Path, artifacts: set[str]) -> None:
    for file in folder.glob("*.json"):
        if file.name.partition(".")[0] not in artifacts:
            file.unlink()
