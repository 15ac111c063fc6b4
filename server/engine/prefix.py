"""Keys and values of prompt prefixes, kept for later requests; aware of the interventions that shaped them.

A text is cut into blocks of :data:`BLOCK` tokens. A block is found by the chain of all tokens up to its end and the
owner of the request, and comes in variants: one for each fingerprint of interventions. A request reuses whole blocks
where its own fingerprint is the same. Where it differs from site L upwards, the layers up to L are reused, and the
forward resumes at block L + 1 with the outputs of block L that were kept beside the block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from server.interventions.fingerprint import Fingerprint, fingerprints, layers_shared

if TYPE_CHECKING:
    from server.engine.kv import Block
    from server.engine.row import Row

BLOCK = 16
"""Tokens of a block: what is shared is rounded down to it."""

_Key = tuple[bytes, Fingerprint]


@dataclass(frozen=True, slots=True)
class Reuse:
    """Blocks whose keys and values are known in all layers, then blocks known in the lowest ``layers`` only."""

    whole: Sequence[Block] = ()
    lower: Sequence[Block] = ()
    layers: int = 0


@dataclass(eq=False, slots=True)
class PrefixPlan:
    """What a row may share: the names of its blocks, how many it reuses, and what it told others to wait for.

    The first ``whole`` blocks were reused in all layers, ``lower`` more in the lowest ``layers``. ``kept_layers`` are
    the layers whose outputs are noted while the row's prompt is read. The forward may resume at layer ``highest``: a
    gate has to read all that was not reused whole.
    """

    keys: list[_Key]
    highest: int = 0
    whole: int = 0
    lower: int = 0
    layers: int = 0
    kept_layers: tuple[int, ...] = ()
    claimed: list[_Key] = field(default_factory=list)
    waits_for: _Key | None = None

    def outputs_known(self, number: int) -> tuple[int, ...]:
        """Layers whose outputs are known in a block: reused ones bring none, resumed ones those from their site on."""
        if number < self.whole:
            return ()
        lowest = self.layers - 1 if number < self.whole + self.lower else 0
        return tuple(layer for layer in self.kept_layers if layer >= lowest)


class PrefixCache:
    """Blocks in order of their last use, within ``budget_bytes``; with a budget of 0 nothing is kept.

    ``layers`` is the model's number of blocks. Only the engine's thread may call it.
    """

    def __init__(self, budget_bytes: int, layers: int) -> None:
        self.budget_bytes = budget_bytes
        self.nbytes = 0
        self._layers = layers
        self._blocks: OrderedDict[_Key, Block] = OrderedDict()
        self._variants: dict[bytes, list[Fingerprint]] = {}
        self._claims: dict[_Key, Row] = {}

    def plan(self, row: Row) -> PrefixPlan:
        """Names the row's blocks; none where nothing may be shared (off, or every prompt token's logits are asked)."""
        if not self.budget_bytes or row.request.sampling.prompt_logprobs is not None:
            return PrefixPlan([])
        marks = (active.resolved.gate_mark for active in row.interventions)
        highest = min((mark.site.layer for mark in marks if mark is not None), default=self._layers)
        # The last token is always computed: its logits are what is asked for.
        return PrefixPlan(self._keys(row, (row.prompt_len - 1) // BLOCK), highest)

    def may_start(self, plan: PrefixPlan) -> bool:
        """False while another row computes the next block that this one needs: it will be there soon."""
        if plan.waits_for is not None and plan.waits_for in self._claims:
            return False
        missing = next((key for key in plan.keys if key not in self._blocks), None)
        plan.waits_for = missing if missing in self._claims else None
        return plan.waits_for is None

    def take(self, row: Row, plan: PrefixPlan) -> Reuse:
        """Decides what the row reuses; it is then expected to compute the rest, and others wait for it."""
        whole: list[Block] = []
        for key in plan.keys:
            if key not in self._blocks:
                break
            whole.append(self._blocks[key])
        rest = plan.keys[len(whole) :]
        for key in rest:
            if self._claims.setdefault(key, row) is row:
                plan.claimed.append(key)
        best = Reuse(whole)
        found = {layer for key in rest[:1] for block in self._all(key[0]) for layer in block.hidden_PD}
        for layer in sorted(layer for layer in found if layer <= plan.highest):
            lower = self._lower(rest, layer)
            if len(lower) * (layer + 1) > len(best.lower) * best.layers:
                best = Reuse(whole, lower, layer + 1)
        self._touch(plan.keys[: len(whole) + len(best.lower)])
        plan.whole, plan.lower, plan.layers = len(best.whole), len(best.lower), best.layers
        return best

    def missing(self, plan: PrefixPlan) -> list[int]:
        """Numbers of the row's blocks that are not kept yet."""
        return [number for number, key in enumerate(plan.keys) if key not in self._blocks]

    def extend(self, row: Row, plan: PrefixPlan) -> None:
        """Names the blocks of the generated text as well, as far as it was computed."""
        plan.keys = self._keys(row, row.computed // BLOCK)

    def put(self, plan: PrefixPlan, number: int, block: Block) -> None:
        """Keeps a block, and drops the least recently used ones beyond the budget."""
        key = plan.keys[number]
        if key in self._blocks or block.nbytes > self.budget_bytes:
            return
        self._blocks[key] = block
        self._variants.setdefault(key[0], []).append(key[1])
        self.nbytes += block.nbytes
        while self.nbytes > self.budget_bytes:
            (name, marks), dropped = self._blocks.popitem(last=False)
            self.nbytes -= dropped.nbytes
            self._variants[name].remove(marks)
            if not self._variants[name]:
                del self._variants[name]

    def settle(self, plan: PrefixPlan) -> None:
        """Ends what the row told others to wait for: it has put its blocks, or never will. May be called again."""
        for key in plan.claimed:
            self._claims.pop(key, None)
        self._touch(plan.keys)
        plan.claimed = []

    def _keys(self, row: Row, count: int) -> list[_Key]:
        name = blake2b(repr(row.request.owner).encode(), digest_size=16).digest()
        names = []
        for start in range(0, count * BLOCK, BLOCK):
            tokens = ",".join(map(str, row.tokens[start : start + BLOCK]))
            name = blake2b(name + tokens.encode(), digest_size=16).digest()
            names.append(name)
        ends = range(BLOCK, count * BLOCK + 1, BLOCK)
        used = (active.resolved for active in row.interventions)
        return list(zip(names, fingerprints(used, row.prompt_len, ends), strict=True))

    def _all(self, name: bytes) -> list[Block]:
        return [self._blocks[name, marks] for marks in self._variants.get(name, ())]

    def _lower(self, rest: Sequence[_Key], layer: int) -> list[Block]:
        """The blocks, from the first on, that hold the output of ``layer`` and agree with the row up to there."""
        found: list[Block] = []
        for name, marks in rest:
            block = next(
                (
                    self._blocks[name, other]
                    for other in self._variants.get(name, ())
                    if layer in self._blocks[name, other].hidden_PD
                    and layers_shared(marks, other, self._layers) > layer
                ),
                None,
            )
            if block is None:
                break
            found.append(block)
        return found

    def _touch(self, keys: Sequence[_Key]) -> None:
        """The start of a text is used by more texts than its end: it is dropped last."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)
