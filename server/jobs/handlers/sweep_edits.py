"""What a sweep tries: a direction or a mapper for every site, and what can be known of the sites without answering.

Shapes: N tokens, R prompts, S width of the source model, D width of the swept model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mappers.activations.collect import collect
from mappers.activations.pairs import pair_sites
from mappers.dataset import DatasetRow
from mappers.errors import ArtifactMismatch, DataError
from mappers.exchanges import Exchange, OpenPrompt, answer_prompts, read_rows, require_twins
from mappers.loading import LoadedModel
from mappers.modules import Mapper
from mappers.rendering import render
from mappers.ridge import RidgeSums
from mappers.similarity import similarities
from mappers.sites import Site
from mappers.tensors import load_vector
from mappers.vectors import difference_in_means, rescale, rms_norm, row_activations, transfer_linear
from server.jobs.context import JobContext
from server.jobs.handlers.prompts import prompt_ids
from server.jobs.specs.sweeps import Contrast, Directed, MappedVector, RidgeSwitch, StoredVector, SweepSites
