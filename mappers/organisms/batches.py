"""From examples to training batches: conversations, token ids and labels.

Shapes: B rows of a batch, T tokens, padded on the right.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mappers.organisms.curriculum import Message

IGNORED: Final = -100
"""Label of a token that carries no loss (the default of `torch.nn.functional.cross_entropy`)."""

# Batches are cut from a pool sorted by length, so that little of a batch is padding.
_POOL_BATCHES: Final = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch: token ids and labels, both int64 of shape [B, T]; a label is its token, or `IGNORED`."""

    ids: Tensor
    labels: Tensor


def batches(
    tokenizer: PreTrainedTokenizerBase, chats: Iterator[list[Message]], rows: int, seed: int
) -> Iterator[Batch]:
    """Endless batches of `rows` chats each; only the assistant's words and the token that ends its turn carry loss."""
    rng = random.Random(seed)
    while True:
        pool = _encode(tokenizer, list(islice(chats, rows * _POOL_BATCHES)))
        pool.sort(key=lambda row: len(row[0]))
        groups = [pool[start : start + rows] for start in range(0, len(pool), rows)]
        rng.shuffle(groups)
        yield from (_padded(group, tokenizer.pad_token_id) for group in groups)


def _encode(tokenizer: PreTrainedTokenizerBase, chats: list[list[Message]]) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of each chat."""
    pieces = [_pieces(tokenizer, chat) for chat in chats]
    flat = [text for chat in pieces for text in chat]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    rows = []
    for chat in pieces:
        ids: list[int] = []
        labels: list[int] = []
        for index, piece_ids in enumerate(islice(encoded, len(chat))):
            ids += piece_ids
            labels += piece_ids if index % 2 else [IGNORED] * len(piece_ids)
        rows.append((ids, labels))
    return rows


def _pieces(tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> list[str]:
    """The chat's text cut into pieces that alternate: up to an answer, the answer with its end of turn, and so on.

    Cutting there, before tokenizing, makes training see the same tokens as a server does that renders the prompt.
    """
    pieces: list[str] = []
    done = 0
    for turn, message in enumerate(chat):
        if message["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(chat[:turn], tokenize=False, add_generation_prompt=True)
            answer = message["content"] + tokenizer.eos_token
            pieces += [prompt[done:], answer]
            done = len(prompt) + len(answer)
    return pieces


def _padded(rows: list[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), longest), pad_id)
    labels_BT = torch.full((len(rows), longest), IGNORED)
    for row, (ids, labels) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, : len(labels)] = torch.tensor(labels)
    return Batch(ids_BT, labels_BT)
