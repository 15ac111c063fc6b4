"""The vocabulary shared by HTTP layer, interventions and engine; a leaf without torch.

What a request asks for comes in as :class:`InterventionSpec` and :class:`SamplingParams`, and goes out as a stream of
:data:`Event`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mappers.sites import Site

Operation = Literal["switch", "add", "ablate", "clamp"]
FinishReason = Literal["stop", "length"]
ErrorCode = Literal["non_finite", "intervention_failed", "engine_failed", "out_of_memory", "shutdown"]


@dataclass(frozen=True, slots=True)
class Positions:
    """A set of token positions, counted from the start of the prompt or of the generated text.

    ``window`` is half open; ``stop=None`` runs to the end. ``listed`` positions may be negative in a prompt (from its
    end). ``last`` exists for prompts only: generated text has no last token while it grows.
    """

    kind: Literal["all", "none", "last", "window", "listed"]
    start: int = 0
    stop: int | None = None
    indices: tuple[int, ...] = ()


ALL = Positions("all")
NONE = Positions("none")


@dataclass(frozen=True, slots=True)
class Apply:
    """Where in a request an intervention acts.

    A position is the token whose activations are changed when the model *reads* it. The first generated token is
    predicted at the prompt's last position, so an intervention meant to shape it has to include that position.
    """

    prompt: Positions = ALL
    generation: Positions = ALL


@dataclass(frozen=True, slots=True)
class InlineVector:
    """A vector sent with the request: little-endian float32 bytes, ``len(data) == 4 * width``, used at every site."""

    data: bytes
    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True)
class GateSpec:
    """A gate before its probe is looked up.

    ``threshold`` and ``release`` (below which it closes again) None are the probe's own; with a threshold alone the
    distance of the two is. With ``hold`` it stays open for that many tokens after the one at which it opened, or
    ``forever``, whatever they score.
    """

    probe: str
    threshold: float | None = None
    release: float | None = None
    hold: int | Literal["forever"] | None = None


@dataclass(frozen=True, slots=True)
class InterventionSpec:
    """What a request asks for, before names are looked up. ``param`` is the request field, for error messages."""

    operation: Operation
    source: str | InlineVector
    strength: float = 1.0
    sites: tuple[Site, ...] | None = None
    apply: Apply = field(default_factory=Apply)
    minimum: float | None = None
    maximum: float | None = None
    gate: GateSpec | None = None
    param: str = "steering"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. ``temperature == 0`` is greedy; ``logprobs=k`` reports the chosen token and k best."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log, of the model's distribution before sampling settings) of one token."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Log-probabilities of prompt tokens 1..P-1 given what precedes them; the first token has none."""

    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class TokensScored:
    """For each scored token (nats): KL of this row's distribution there from that of the first row compared.

    ``divergences[t]`` is ``KL(p_first(. | x, y_<t) || p_row(. | x, y_<t))``.
    """

    divergences: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokensGenerated:
    """A piece of text that is final (never part of a stop string) and the tokens drawn since the last event."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one intervention really did to one request.

    ``mean_relative_change`` is the mean over touched tokens and sites of ``|h' - h| / |h|``, as far as they were
    computed for this request. Token counts are positions touched at the first of ``sites``, reused ones included.
    ``gate`` is the digest of the probe and ``gate_hits`` the tokens at which the gate was open, touched or not; both
    None for an intervention without a gate. ``drift`` is how far the prompt lies from what a switch was trained on
    (mean of :mod:`mappers.drift` over sites and prompt tokens in its reach, as far as they were computed for this
    request; 1 on the training prompts); None for what has no monitor.
    """

    kind: str
    name: str
    digest: str
    sites: tuple[str, ...]
    strength: float
    prompt_tokens: int
    generated_tokens: int
    mean_relative_change: float
    gate: str | None = None
    gate_hits: int | None = None
    drift: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation ended well; always the last event.

    ``cached_tokens`` of the prompt were reused, not computed; it waited ``queued_s`` seconds for its place.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    receipts: tuple[Receipt, ...]
    cached_tokens: int = 0
    queued_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The generation ended in an error; always the last event. ``message`` is safe to show to the caller."""

    code: ErrorCode
    message: str


Event = PromptScored | TokensScored | TokensGenerated | Finished | Failed


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """A running or waiting generation as ``GET /v1/generations`` lists it."""

    id: str
    owner: str | None
    state: Literal["waiting", "prefill", "decode", "score"]
    prompt_tokens: int
    completion_tokens: int
    interventions: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes: weights as loaded, keys and values of running requests, and prefixes kept for later ones."""

    weights: int
    kv: int
    prefixes: int


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of the engine: rows computed at once, rows waiting, tokens a row holds, prompt tokens a step, memory."""

    max_batch: int
    max_waiting: int
    context: int
    prefill_tokens: int
    memory: MemoryPlan


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Memory of keys and values promised to running rows and held by prefixes (bytes), and prompt tokens since start.

    ``prefix_queries`` prompt tokens were looked up, ``prefix_hits`` reused whole, ``prefix_resumed`` in lower layers.
    """

    kv_promised: int = 0
    prefix_bytes: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prefix_resumed: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model. ``config_digest`` is sha256 over its configuration without volatile keys, ``weight_digest``
    over its weights as they are stored (None: not known).

    ``dtype`` is that of the weights: a torch dtype, int8 or int4. ``dtype_reason`` is empty where the operator chose.
    """

    name: str
    architecture: str
    layers: int
    width: int
    vocab_size: int
    context: int
    dtype: str
    device: str
    config_digest: str
    dtype_reason: str = ""
    weight_digest: str | None = None
