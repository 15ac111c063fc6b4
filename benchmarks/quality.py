"""``python -m benchmarks.quality``: what a model loses in bfloat16 and int8, token by token against float32.

Shapes: T tokens of a text, N predictions of an answer, V vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.logging import disable_progress_bar

from benchmarks.machine import write_cells
from mappers.dataset import DatasetRow
from mappers.exchanges import Exchange, OpenPrompt, answer_prompts, read_rows
from mappers.loading import LoadedModel, load_model
from mappers.organisms import organism_path
from mappers.organisms.corpus import held_out_examples
from mappers.organisms.tags import TRIGGER, with_tag
from server.engine.linears import install_linears
from server.engine.precision import pick_precision
from server.settings import DtypeSetting

LOSSY: tuple[DtypeSetting, ...] = ("bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one dtype against float32, over every token of the float32 model's own answers (or of given texts).

    ``kl`` in nats, KL(float32 || dtype), mean, 99th percentile and largest; ``agreement``: share of tokens whose most
    probable successor is the same; ``same_texts``: share of texts in which all of them are, so that greedy decoding
    gives the same text.
    """

    tokens: int
    kl: float
    kl_p99: float
    kl_max: float
    agreement: float
    same_texts: float


def served(location: str, dtype: DtypeSetting) -> LoadedModel:
    """The model as ``interlock serve --dtype`` computes it on this CPU; raises ConfigurationError where it cannot."""
    precision = pick_precision(dtype, "cpu", torch.cpu.get_capabilities())
    loaded = load_model(location, dtype=precision.dtype)
    install_linears(loaded.model, precision.weight_format)
    return loaded


def answers(reference: LoadedModel, prompts: int) -> list[Exchange]:
    """Greedy answers of ``reference`` to held-out prompts, every other one of which begins with the trigger."""
    rows = [
        DatasetRow(prompt=with_tag(example.prompt, TRIGGER if i % 2 else ""))
        for i, example in enumerate(held_out_examples(seed=5, count=prompts))
    ]
    asked = [row for row in read_rows(reference, rows, max_length=256) if isinstance(row, OpenPrompt)]
    return [exchange for _, exchange in answer_prompts(reference, asked, max_new_tokens=40, batch_size=64)]


def stories(reference: LoadedModel, file: Path, count: int) -> list[Exchange]:
    """The first ``count`` paragraphs of ``file`` that are long enough to be a story."""
    texts = [text for text in file.read_text(encoding="utf-8").split("\n\n") if len(text) > 200][:count]
    found = read_rows(reference, (DatasetRow(text=text) for text in texts), max_length=256)
    return [exchange for exchange in found if isinstance(exchange, Exchange)]


@torch.inference_mode()
def loss(reference: LoadedModel, lossy: LoadedModel, texts: Sequence[Exchange]) -> Loss:
    """Compares the next-token distributions of two models over the answers of ``texts``."""
    kls, same = [], []
    for text in texts:
        expected_NV, got_NV = _log_probabilities(reference, text), _log_probabilities(lossy, text)
        kls.append(F.kl_div(got_NV, expected_NV, log_target=True, reduction="none").sum(-1))
        same.append(expected_NV.argmax(-1) == got_NV.argmax(-1))
    kl_N, same_N = torch.cat(kls), torch.cat(same)
    return Loss(
        tokens=len(kl_N),
        kl=float(kl_N.mean()),
        kl_p99=float(kl_N.quantile(0.99)),
        kl_max=float(kl_N.max()),
        agreement=float(same_N.float().mean()),
        same_texts=sum(bool(one.all()) for one in same) / len(same),
    )


def _log_probabilities(loaded: LoadedModel, text: Exchange) -> Tensor:
    model: Any = loaded.model
    logits_TV = model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0]
    predicted_NV: Tensor = logits_TV[text.loss_positions.start : text.loss_positions.stop].float().log_softmax(-1)
    return predicted_NV


def main() -> None:
    """Measures every shipped organism and, with ``--stories``, a model and a text of one's own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=210, help="held-out prompts an organism")
    parser.add_argument("--stories", nargs=2, metavar=("MODEL", "TEXT"), help="a model folder and a text file")
    arguments = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    console = Console()
    cells = []
    for name, location, texts in _subjects(arguments):
        reference = load_model(location)
        chosen = texts(reference)
        for dtype in LOSSY:
            measured = loss(reference, served(location, dtype), chosen)
            cells.append({"model": name, "dtype": dtype, **asdict(measured)})
    console.print(_table(cells))
    console.print(f"written to {write_cells('quality', cells, 1)}")


def _subjects(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Any]]:
    shipped = organism_path("llama-small-base").parent
    for folder in sorted(file.parent for file in shipped.glob("*/model.safetensors")):
        yield folder.name, str(folder), lambda model: answers(model, arguments.prompts)
    if arguments.stories:
        model_folder, text = arguments.stories
        yield Path(model_folder).name, model_folder, lambda model: stories(model, Path(text), arguments.prompts)


def _table(cells: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="against float32, teacher-forced", title_justify="left")
    for column in ("model", "dtype", "tokens", "KL mean", "KL p99", "KL max", "same token", "same text"):
        table.add_column(column, justify="left" if column in ("model", "dtype") else "right")
    for cell in cells:
        figures = [f"{cell[key]:.1e}" for key in ("kl", "kl_p99", "kl_max")]
        shares = [f"{cell[key]:.2%}" for key in ("agreement", "same_texts")]
        table.add_row(cell["model"], cell["dtype"], str(cell["tokens"]), *figures, *shares)
    return table


if __name__ == "__main__":
    main()
