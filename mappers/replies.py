"""What a model says in reply to prompts: next-token logits over the answers, and the residual stream at chosen sites.

Shapes: B rows, T tokens, D width, M real tokens of a batch, N loss positions of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from mappers.activations.collect import keep_output, pad_batch
from mappers.exchanges import Exchange
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel
from mappers.modules import Mapper
from mappers.sites import Site

Acting = Literal["all", "answer"]

TEACHER_CACHE_BYTES = 1 << 28
"""What a :class:`Teacher` may keep."""


@dataclass(frozen=True, slots=True)
class Replies:
    """One model's replies to a batch, row after row.

    ``logits_NV`` at the loss positions, ``hidden[site]`` is ``h_MD`` at every real token (after the mapper, where one
    is on).
    """

    logits_NV: Tensor
    hidden: dict[Site, Tensor]


def read_replies(
    loaded: LoadedModel,
    exchanges: Sequence[Exchange],
    sites: Sequence[Site],
    mappers: Mapping[Site, Mapper] | None = None,
    *,
    acting: Acting = "all",
    shift_BTD: Tensor | None = None,
) -> Replies:
    """One forward over the exchanges with ``h <- f(h)`` where ``mappers`` has a site.

    ``acting`` on ``all`` tokens, or from the prompt's last token on (``answer``): where an engine applies what acts on
    the ``last`` token of the prompt and on all generated ones. ``shift_BTD``, padded on the right like the exchanges,
    is added to the tokens' embeddings. The head is run only at columns that some row's loss needs.
    """
    batch = pad_batch([e.ids for e in exchanges], range(len(exchanges)), next(loaded.model.parameters()).device)
    columns = sorted({position for exchange in exchanges for position in exchange.loss_positions})
    hidden: dict[Site, Tensor] = {}
    on = mappers or {}
    columns_T = torch.arange(batch.ids_BT.shape[1], device=batch.ids_BT.device)
    first_B = torch.tensor([e.answer_start - 1 if acting == "answer" else 0 for e in exchanges]).to(columns_T)
    acts_BT = columns_T >= first_B[:, None]
    callbacks = {s: _replace(hidden, s, on[s], acts_BT) if s in on else keep_output(hidden, s) for s in sites}
    model: Any = loaded.model
    read = {"input_ids": batch.ids_BT}
    if shift_BTD is not None:
        read = {"inputs_embeds": model.get_input_embeddings()(batch.ids_BT) + shift_BTD}
    with block_outputs(loaded.stack, callbacks):
        output = model(
            **read,
            attention_mask=batch.mask_BT.long(),
            logits_to_keep=torch.tensor(columns, device=batch.ids_BT.device),
            use_cache=False,
        )
    wanted = _wanted(exchanges, columns).to(output.logits.device)
    return Replies(output.logits[wanted], {site: h_BTD[batch.mask_BT] for site, h_BTD in hidden.items()})


def at_loss_positions(exchanges: Sequence[Exchange]) -> list[int]:
    """Where the loss positions stand among all tokens of the exchanges, row after row."""
    starts = accumulate((len(exchange.ids) for exchange in exchanges), initial=0)
    return [
        start + position
        for start, exchange in zip(starts, exchanges, strict=False)
        for position in exchange.loss_positions
    ]


class Teacher:
    """The base model's replies to a fixed set of exchanges, worked out once where they fit in memory.

    They are computed in a fixed order of batches, not as training happens to ask for them, so that a resumed fit sees
    the same numbers bit for bit.
    """

    def __init__(
        self, base: LoadedModel, exchanges: Sequence[Exchange], sites: Sequence[Site], *, batch_size: int
    ) -> None:
        self._base = base
        self._exchanges = exchanges
        self._sites = sites
        self._kept: dict[int, Replies] = {}
        if self._bytes() <= TEACHER_CACHE_BYTES:
            order = sorted(range(len(exchanges)), key=lambda row: len(exchanges[row].ids))
            for start in range(0, len(order), batch_size):
                self._keep(order[start : start + batch_size])

    def replies(self, rows: Sequence[int]) -> Replies:
        """The replies to the exchanges at ``rows``, in that order."""
        if not self._kept:
            return self._read(rows)
        parts = [self._kept[row] for row in rows]
        hidden = {site: torch.cat([part.hidden[site] for part in parts]) for site in self._sites}
        return Replies(torch.cat([part.logits_NV for part in parts]), hidden)

    def _read(self, rows: Sequence[int]) -> Replies:
        with torch.no_grad():
            return read_replies(self._base, [self._exchanges[row] for row in rows], self._sites)

    def _keep(self, rows: Sequence[int]) -> None:
        replies = self._read(rows)
        logits = torch.split(replies.logits_NV, [len(self._exchanges[row].loss_positions) for row in rows])
        tokens = [len(self._exchanges[row].ids) for row in rows]
        hidden = {site: torch.split(h_MD, tokens) for site, h_MD in replies.hidden.items()}
        for place, row in enumerate(rows):
            self._kept[row] = Replies(logits[place], {site: parts[place] for site, parts in hidden.items()})

    def _bytes(self) -> int:
        config: Any = self._base.model.config
        vocabulary = int(config.get_text_config().vocab_size)
        positions = sum(len(exchange.loss_positions) for exchange in self._exchanges)
        tokens = sum(len(exchange.ids) for exchange in self._exchanges)
        return 4 * (positions * vocabulary + tokens * self._base.stack.width * len(self._sites))


def _replace(store: dict[Site, Tensor], site: Site, mapper: Mapper, acts_BT: Tensor) -> Callable[[Tensor], Tensor]:
    def replace(h_BTD: Tensor) -> Tensor:
        store[site] = torch.where(acts_BT[..., None], mapper(h_BTD), h_BTD)
        return store[site]

    return replace


def _wanted(exchanges: Sequence[Exchange], columns: Sequence[int]) -> Tensor:
    """True at ``[row, index of column]`` where that row's loss counts that column."""
    wanted = torch.zeros(len(exchanges), len(columns), dtype=torch.bool)
    place = {column: index for index, column in enumerate(columns)}
    for row, exchange in enumerate(exchanges):
        wanted[row, [place[position] for position in exchange.loss_positions]] = True
    return wanted
