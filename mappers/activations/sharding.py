"""Streams activations of many sites to shards on disk; a run that was killed goes on where it was, to the same bytes.

The batches and which shard each belongs to follow from the texts' lengths alone. A ledger, replaced whole after each
shard, keeps the digests of those that are finished: a later run checks them and does the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from mappers.activations.collect import ActivationBatch, read_sites
from mappers.activations.masks import Mask, has_text
from mappers.activations.shards import INDEX_TENSORS, shard_name
from mappers.artifact import describe_file, staged_file, write_manifest
from mappers.errors import ArtifactCorrupt, DataError
from mappers.loading import LoadedModel
from mappers.manifest import MAX_FILES, FileEntry, Manifest
from mappers.rendering import Rendered
from mappers.sites import Site

LEDGER_FILE = "ledger.json"
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is collected: ``shard_bytes`` bounds the tensors of one file, ``batch_size`` the texts of one forward."""

    sites: tuple[Site, ...]
    dtype: Literal["float16", "float32"] = "float16"
    mask: Mask = field(default_factory=Mask)
    batch_size: int = 16
    shard_bytes: int = 1 << 27


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Part):
    """A finished shard: its file, its tokens, and how many were left out (``massive`` by site)."""

    file: FileEntry
    tokens: int
    special: int
    massive: dict[str, int]


class Ledger(_Part):
    """How far a collection is. ``recipe`` is a digest of all that its bytes depend on; ``limits`` are norms by site."""

    recipe: str
    limits: dict[str, float]
    shards: tuple[Shard, ...] = ()

    @property
    def tokens(self) -> int:
        """The tokens in all finished shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def masked(self) -> dict[str, int]:
        """How many tokens were left out, as ``special_tokens`` and as massive at each site (several may hold)."""
        sites = {f"massive.{site}": sum(shard.massive[site] for shard in self.shards) for site in self.limits}
        return {"special_tokens": sum(shard.special for shard in self.shards)} | sites


def write_shards(
    loaded: LoadedModel, texts: Mapping[int, Rendered], recipe: Recipe, folder: Path
) -> Iterator[tuple[int, int]]:
    """Writes the shards of ``texts`` (by their row in the dataset) into ``folder``; gives batches done, and in all.

    A token that is massive at one site is left out at every site. Raises DataError where ``folder`` holds shards of
    something else, a text or the number of shards exceeds the bounds, or values are not finite in ``recipe.dtype``;
    ArtifactMismatch for a site the model does not have.
    """
    rows = sorted((row for row, text in texts.items() if text.ids), key=lambda row: (len(texts[row].ids), row))
    sequences = [texts[row].ids for row in rows]
    plan = _plan(rows, sequences, recipe, loaded.stack.width)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = _take_up(folder, _digest(loaded, rows, sequences, recipe))
    if not ledger.limits:
        limits = recipe.mask.norm_limits(loaded, recipe.sites, sequences, batch_size=recipe.batch_size)
        ledger = ledger.model_copy(update={"limits": {str(site): limit for site, limit in limits.items()}})
    finished = len(ledger.shards)
    done, total = sum(map(len, plan[:finished])), sum(map(len, plan))
    yield done, total
    for number, batches in enumerate(plan[finished:], start=finished):
        shard = _Filling(recipe, ledger.limits, sum(len(sequences[i]) for batch in batches for i in batch))
        for batch in batches:
            found = read_sites(loaded, recipe.sites, sequences, batch)
            shard.add(found, rows, [texts[rows[i]] for i in batch])
            done += 1
            if batch is not batches[-1]:
                yield done, total
        ledger = ledger.model_copy(update={"shards": (*ledger.shards, shard.write(folder, shard_name(number)))})
        with staged_file(folder, LEDGER_FILE) as path:
            path.write_text(ledger.model_dump_json())
        yield done, total


def read_ledger(folder: Path) -> Ledger:
    """How far the collection in ``folder`` is; raises ArtifactCorrupt where there is none."""
    try:
        return Ledger.model_validate_json((folder / LEDGER_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactCorrupt(f"{folder.name!r} holds no collection of activations: collect them") from error


def seal_activations(shards: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Makes ``folder`` (on the same file system) an artifact of the finished shards; returns the manifest as written.

    The files are hard links, so a crash in between costs nothing. Raises DataError where no token was kept.
    """
    ledger = read_ledger(shards)
    if ledger.tokens == 0:
        raise DataError("no token was kept: use other rows, a longer max_length or a weaker mask")
    folder.mkdir(parents=True, exist_ok=True)
    files = {shard_name(number): shard.file for number, shard in enumerate(ledger.shards)}
    for name in files:
        (folder / name).unlink(missing_ok=True)
        os.link(shards / name, folder / name)
    sealed = Manifest.model_validate({**manifest.model_dump(), "files": files})
    write_manifest(folder, sealed)
    return sealed


class _Filling:
    """A shard that is being filled: tensors with room for every token of its batches. Shapes: B texts, T tokens, D."""

    def __init__(self, recipe: Recipe, limits: Mapping[str, float], room: int) -> None:
        self._recipe = recipe
        self._limits = {site: limits[str(site)] for site in recipe.sites if str(site) in limits}
        self._room = room
        self._tensors: dict[str, Tensor] = {name: torch.empty(room, dtype=torch.int32) for name in INDEX_TENSORS}
        self._tokens = self._special = 0
        self._massive = dict.fromkeys(map(str, self._limits), 0)

    def add(self, batch: ActivationBatch, rows: Sequence[int], texts: Sequence[Rendered]) -> None:
        """Takes the tokens of a batch that the mask leaves; ``rows`` gives the dataset's row of each place."""
        keep_BT = self._unmasked(batch, texts)
        index_N = keep_BT.flatten().nonzero().squeeze(1)
        row_B = torch.tensor([rows[place] for place in batch.rows], device=index_N.device)
        longest = keep_BT.shape[1]
        found = (batch.ids_BT.flatten()[index_N], row_B[index_N // longest], index_N % longest)
        end = self._tokens + len(index_N)
        for name, values_N in zip(INDEX_TENSORS, found, strict=True):
            self._tensors[name][self._tokens : end] = values_N.cpu()
        for site in self._recipe.sites:
            h_BTD = batch.hidden[site]
            h_ND = h_BTD.flatten(0, 1)[index_N].to(_DTYPES[self._recipe.dtype]).cpu()
            if not torch.isfinite(h_ND).all():
                raise DataError(
                    f"activations at {site} are not finite in {self._recipe.dtype}: collect them in float32"
                )
            if str(site) not in self._tensors:
                self._tensors[str(site)] = torch.empty(self._room, h_ND.shape[1], dtype=h_ND.dtype)
            self._tensors[str(site)][self._tokens : end] = h_ND
        self._tokens = end

    def write(self, folder: Path, name: str) -> Shard:
        """Writes what was kept."""
        with staged_file(folder, name) as path:
            save_file({tensor: values[: self._tokens] for tensor, values in self._tensors.items()}, path)
        file = describe_file(folder, name)
        return Shard(file=file, tokens=self._tokens, special=self._special, massive=self._massive)

    def _unmasked(self, batch: ActivationBatch, texts: Sequence[Rendered]) -> Tensor:
        keep_BT = batch.mask_BT.clone()
        if self._recipe.mask.special_tokens:
            for place, text in enumerate(texts):
                keep_BT[place, : len(text.ids)] &= torch.tensor(has_text(text), device=keep_BT.device)
            self._special += int(batch.mask_BT.sum() - keep_BT.sum())
        for site, limit in self._limits.items():
            massive_BT = batch.mask_BT & (batch.hidden[site].norm(dim=-1) > limit)
            self._massive[str(site)] += int(massive_BT.sum())
            keep_BT &= ~massive_BT
        return keep_BT


def _plan(rows: Sequence[int], sequences: Sequence[Sequence[int]], recipe: Recipe, width: int) -> list[list[list[int]]]:
    """The shards, each a list of batches, each a list of places in ``sequences``."""
    token_bytes = 4 * len(INDEX_TENSORS) + len(recipe.sites) * width * _DTYPES[recipe.dtype].itemsize
    room = recipe.shard_bytes // token_bytes
    plan: list[list[list[int]]] = []
    left = 0
    for place, ids in enumerate(sequences):
        if len(ids) > room:
            raise DataError(
                f"row {rows[place]} has {len(ids)} tokens, but a shard has room for {room}: raise the size of shards "
                "or lower max_length"
            )
        if len(ids) > left:
            plan.append([[]])
            left = room
        elif len(plan[-1][-1]) == recipe.batch_size:
            plan[-1].append([])
        plan[-1][-1].append(place)
        left -= len(ids)
    if not plan:
        raise DataError("no text has a token: use other rows or a longer max_length")
    if len(plan) > MAX_FILES:
        raise DataError(
            f"this takes {len(plan)} shards, at most {MAX_FILES} make an artifact: raise the size of shards"
        )
    return plan


def _digest(loaded: LoadedModel, rows: Sequence[int], sequences: Sequence[Sequence[int]], recipe: Recipe) -> str:
    """Of everything the shards' bytes depend on, as far as it can be known without reading the weights."""
    digest = sha256(repr((loaded.name, loaded.config_digest, recipe)).encode())
    for row, ids in zip(rows, sequences, strict=True):
        digest.update(json.dumps([row, *ids]).encode())
    return digest.hexdigest()


def _take_up(folder: Path, recipe: str) -> Ledger:
    """The ledger of an earlier run, up to the first shard that is not what it says; without one, an empty ledger."""
    if not (folder / LEDGER_FILE).exists():
        return Ledger(recipe=recipe, limits={})
    ledger = read_ledger(folder)
    if ledger.recipe != recipe:
        raise DataError(f"{folder.name!r} holds shards of another collection: use an empty folder")
    whole = 0
    for number, shard in enumerate(ledger.shards):
        try:
            if describe_file(folder, shard_name(number)) != shard.file:
                break
        except ArtifactCorrupt:
            break
        whole = number + 1
    return ledger.model_copy(update={"shards": ledger.shards[:whole]})
