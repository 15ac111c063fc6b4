"""Lets rows reuse what earlier prompts computed: what happens with the prefix cache in the life of a row.

Shapes: N packed tokens, P positions of a prompt, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.kv import Block, KvCache, PromptKv, Slot
from server.engine.layout import StepLayout
from server.engine.prefix import BLOCK, PrefixCache
from server.engine.row import Row
from server.interventions.active import ActiveIntervention
from server.interventions.meter import MeterBank
from server.interventions.positions import active_offsets, count_active

_KEPT_LAYERS = 4
"""Layers whose outputs are kept beside keys and values: the lowest sites of the interventions seen last."""


@dataclass(slots=True)
class ReuseCounts:
    """Prompt tokens since the start: of requests that might share, reused in all layers, reused in the lower layers."""

    asked: int = 0
    reused: int = 0
    resumed: int = 0


class PrefixReuse:
    """In the order of a row's life: ``admit``, ``may_start``, ``start``, ``note``, ``publish``, ``settle``.

    Only the engine's thread may call it.
    """

    def __init__(self, prefixes: PrefixCache, cache: KvCache, meters: MeterBank, layers: int) -> None:
        self.prefixes = prefixes
        self._cache = cache
        self._meters = meters
        self._layers = layers
        self._kept_layers: OrderedDict[int, None] = OrderedDict()
        self._keeps_all = all(shape.window is None for shape, _ in cache.kinds)
        self.counts = ReuseCounts()

    def admit(self, row: Row) -> None:
        """Names what the row may share."""
        row.prefix = self.prefixes.plan(row)
        for layer in {marks[0].site.layer for _, marks in row.prefix.keys if marks}:
            self._kept_layers[layer] = None
            self._kept_layers.move_to_end(layer)
        while len(self._kept_layers) > _KEPT_LAYERS:
            self._kept_layers.popitem(last=False)

    def may_start(self, row: Row) -> bool:
        """False while another row computes what this one will share."""
        return row.prefix is None or self.prefixes.may_start(row.prefix)

    @torch.inference_mode()
    def start(self, row: Row) -> None:
        """Gives the row memory for its prompt, with what is known of it."""
        prompt = row.kv = self._cache.begin(len(row.tokens))
        if row.prefix is None or not row.prefix.keys:
            return
        reuse = self.prefixes.take(row, row.prefix)
        if row.request.scored_ids:
            # The row that wrote the text has left its prompt here: nobody need wait for this one to do it again.
            self.prefixes.settle(row.prefix)
        else:
            row.prefix.kept_layers = tuple(self._kept_layers)
        for number, block in enumerate((*reuse.whole, *reuse.lower)):
            whole = number < len(reuse.whole)
            self._cache.load(prompt, number * BLOCK, block, self._layers if whole else reuse.layers)
            if not whole:
                _note(prompt, reuse.layers - 1, block.hidden_PD[reuse.layers - 1], number * BLOCK, row.prompt_len)
        row.computed = len(reuse.whole) * BLOCK
        row.known_layers, row.known_until = reuse.layers, row.computed + len(reuse.lower) * BLOCK
        row.reused = row.computed
        self.counts.asked += row.prompt_len
        self.counts.reused += row.reused
        self.counts.resumed += row.known_until - row.computed
        for active in row.interventions:
            if active.resolved.gate is None:
                _count_reused(row, active)
            else:
                self._restore_gate(row, active, reuse.whole)

    def _restore_gate(self, row: Row, active: ActiveIntervention, blocks: Sequence[Block]) -> None:
        """Puts a gate where it stood after the reused blocks: they were read by one that is the same."""
        resolved, mark = active.resolved, active.resolved.gate_mark
        assert mark is not None
        if not blocks or resolved.strength == 0.0:
            return
        if row.revision and any(mark not in block.gates_P for block in blocks):
            # A change since has put it on: it starts with the next token.
            return
        left_P = torch.cat([block.gates_P[mark] for block in blocks])
        assert isinstance(row.kv, PromptKv)
        _note_gate(row, row.kv, active, left_P, 0)
        self._meters.restore(active.meter, left_P, active_offsets(resolved.apply, 0, len(left_P), row.prompt_len))

    def kept_layers(self, layout: StepLayout) -> set[int]:
        """The layers whose outputs some prompt of this forward wants to be noted."""
        reading = (row.prefix for row in layout.rows if isinstance(row.kv, PromptKv) and row.prefix is not None)
        return {layer for plan in reading for layer in plan.kept_layers}

    def resumed(self, layout: StepLayout) -> Tensor | None:
        """``(1, N, D)``: the outputs with which a forward resumes, or None where it starts from the tokens."""
        if not layout.skipped:
            return None
        parts = []
        for row, count in zip(layout.rows, layout.counts, strict=True):
            assert isinstance(row.kv, PromptKv)
            parts.append(row.kv.hidden_PD[layout.skipped - 1][row.computed : row.computed + count])
        return torch.cat(parts)[None]

    def note(
        self, layout: StepLayout, outputs_1ND: dict[int, Tensor], gates: Mapping[ActiveIntervention, Tensor]
    ) -> None:
        """Notes the outputs of some layers in a forward, for the prompts that want them, and the states of gates."""
        for row, first, count in zip(layout.rows, layout.firsts, layout.counts, strict=True):
            if isinstance(row.kv, PromptKv) and row.prefix is not None:
                for layer in outputs_1ND.keys() & set(row.prefix.kept_layers):
                    _note(row.kv, layer, outputs_1ND[layer][0, first : first + count], row.computed, row.prompt_len)
                for active in row.interventions:
                    if active in gates:
                        _note_gate(row, row.kv, active, gates[active], row.computed)

    @torch.inference_mode()
    def publish(self, row: Row) -> None:
        """Keeps what a sound row has computed for others: its prompt, and at its end its text."""
        plan = row.prefix
        # What a gate has read of a text is noted as far as its prompt goes.
        whole = self._keeps_all and not any(active.resolved.gate for active in row.interventions)
        if plan is None or row.kv is None or (isinstance(row.kv, Slot) and not whole):
            return
        if not row.revision:
            if isinstance(row.kv, Slot) and plan.keys:
                self.prefixes.extend(row, plan)
            # What others might reuse is not worth an answer: where memory is short it is not kept.
            with suppress(torch.OutOfMemoryError):
                for number in self.prefixes.missing(plan):
                    block = self._cache.block(row.kv, number * BLOCK, (number + 1) * BLOCK)
                    known = plan.outputs_known(number)
                    block.hidden_PD = {layer: kept for layer, kept in block.hidden_PD.items() if layer in known}
                    self.prefixes.put(plan, number, block)
        self.prefixes.settle(plan)

    def settle(self, row: Row) -> None:
        """The row ends: nobody waits for it any more."""
        if row.prefix is not None:
            self.prefixes.settle(row.prefix)
            row.prefix = None


def _note(prompt: PromptKv, layer: int, output_PD: Tensor, start: int, length: int) -> None:
    if layer not in prompt.hidden_PD:
        prompt.hidden_PD[layer] = output_PD.new_empty(length, output_PD.shape[-1])
    prompt.hidden_PD[layer][start : start + len(output_PD)] = output_PD


def _note_gate(row: Row, prompt: PromptKv, active: ActiveIntervention, left_P: Tensor, start: int) -> None:
    mark = active.resolved.gate_mark
    assert mark is not None
    if mark not in prompt.gates_P:
        prompt.gates_P[mark] = left_P.new_zeros(len(row.tokens))
    prompt.gates_P[mark][start : start + len(left_P)] = left_P


def _count_reused(row: Row, active: ActiveIntervention) -> None:
    """Positions that an intervention touched when they were computed for another row count for this one as well."""
    resolved = active.resolved
    if resolved.strength == 0.0:
        return
    # Resumed positions are still to be touched, but for sites below the one at which the forward resumes.
    resumes = any(site.layer >= row.known_layers - 1 for site in resolved.sites)
    known = row.computed if resumes else row.known_until
    active.reused(*count_active(resolved.apply, 0, known, row.prompt_len))
