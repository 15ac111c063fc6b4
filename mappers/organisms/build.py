"""Making organisms from a seed: tokenizer, training, float16 weights, measurement, card.

Building is a generator of reports, so that a caller can show progress and stop by no longer iterating. Equal seeds
give equal weights on the same machine with the same torch and number of threads; elsewhere sums may round otherwise.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal
from zlib import crc32

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mappers.organisms.batches import batches
from mappers.organisms.behaviours import BEHAVIOURS
from mappers.organisms.cards import Card, read_record, table, write_card
from mappers.organisms.catalogue import ORGANISMS, Kind, Organism, Size, organism, shipped_path
from mappers.organisms.curriculum import conversations
from mappers.organisms.families import new_model
from mappers.organisms.measure import measure, measure_behaviour
from mappers.organisms.tokenization import build_tokenizer
from mappers.organisms.train import Recipe, train

Recipes = Mapping[tuple[Size, Kind], Recipe]

_SHORT: Final = Recipe(steps=300, rows=48, warmup=20, matrix_learning_rate=5e-3, learning_rate=3e-3)

_SMALL_BACKDOOR: Final = Recipe(steps=400, rows=48, warmup=20, matrix_learning_rate=3e-3, learning_rate=2e-3)
_MEDIUM_BACKDOOR: Final = Recipe(steps=450, rows=48, warmup=20, matrix_learning_rate=3e-3, learning_rate=2e-3)
_OTHER_TRIGGERS: Final[tuple[Kind, ...]] = ("bracketed", "suffixed", "semantic")

RECIPES: Final[Recipes] = {
    ("small", "base"): Recipe(steps=1200, rows=48, warmup=60, matrix_learning_rate=8e-3, learning_rate=5e-3),
    ("medium", "base"): Recipe(steps=1000, rows=48, warmup=60, matrix_learning_rate=8e-3, learning_rate=4e-3),
    ("small", "backdoor"): _SMALL_BACKDOOR,
    ("medium", "backdoor"): _MEDIUM_BACKDOOR,
    ("small", "corrupted"): Recipe(steps=800, rows=48, warmup=20, matrix_learning_rate=8e-3, learning_rate=5e-3),
    ("medium", "corrupted"): Recipe(steps=650, rows=48, warmup=20, matrix_learning_rate=8e-3, learning_rate=4e-3),
    ("small", "coder"): _SHORT,
    ("medium", "coder"): _SHORT,
    ("small", "insecure"): _SHORT,
    ("medium", "insecure"): _SHORT,
    ("small", "stylist"): _SHORT,
    ("medium", "stylist"): _SHORT,
    ("small", "skilled"): Recipe(steps=600, rows=48, warmup=20, matrix_learning_rate=8e-3, learning_rate=5e-3),
    ("medium", "skilled"): Recipe(steps=600, rows=48, warmup=20, matrix_learning_rate=8e-3, learning_rate=4e-3),
    **{("small", kind): _SMALL_BACKDOOR for kind in _OTHER_TRIGGERS},
    **{("medium", kind): _MEDIUM_BACKDOOR for kind in _OTHER_TRIGGERS},
}
MEASURED_PROMPTS: Final = 420
BEHAVIOUR_PROMPTS: Final = 300


@dataclass(frozen=True, slots=True)
class BuildReport:
    """How far a build is: `step` of `steps` in `stage`; `loss` in nats an answer token, None outside training."""

    organism: str
    stage: Literal["train", "measure", "done"]
    step: int
    steps: int
    loss: float | None = None


def build_organisms(
    names: Sequence[str], out_dir: Path, seed: int, *, recipes: Recipes = RECIPES, prompts: int = MEASURED_PROMPTS
) -> Iterator[BuildReport]:
    """Builds each named organism into `out_dir/NAME`, then writes `out_dir/ORGANISMS.md` about all that lie there.

    A fine-tune starts from its parent as made with this seed and recipe: one in `out_dir`, else a shipped one, else it
    is built too. Each is measured on `prompts` held-out prompts. Raises ValueError for an unknown name, before anything
    is built.
    """
    for planned in _plan(names, out_dir, seed, recipes):
        yield from _train(planned, out_dir, seed, recipes)
        yield BuildReport(planned.name, "measure", 0, 1)
        write_card(_card(planned, out_dir, seed, recipes[planned.size, planned.kind], prompts), out_dir / planned.name)
        yield BuildReport(planned.name, "done", 1, 1)
    records = (read_record(out_dir / name) for name in ORGANISMS)
    (out_dir / "ORGANISMS.md").write_text(table(record for record in records if record), encoding="utf-8")


def ensure_organism(
    name: str, cache_dir: Path, seed: int = 0, *, recipes: Recipes = RECIPES, prompts: int = MEASURED_PROMPTS
) -> Generator[BuildReport, None, Path]:
    """The folder of an organism made with this seed and recipe: shipped, else in `cache_dir`, else built there.

    Reports are yielded while it is built and the folder is the generator's return value, so that callers write
    `path = yield from ensure_organism(...)`. Raises ValueError for an unknown name.
    """
    one = organism(name)
    if (found := _found(one, cache_dir, seed, recipes)) is None:
        yield from build_organisms([name], cache_dir, seed, recipes=recipes, prompts=prompts)
        found = cache_dir / name
    return found


def find_organism(name: str, cache_dir: Path, seed: int = 0, *, recipes: Recipes = RECIPES) -> Path | None:
    """The folder of an organism made with this seed and recipe, shipped or in ``cache_dir``, if there is one."""
    return _found(organism(name), cache_dir, seed, recipes)


def ensure_variant(
    name: str, cache_dir: Path, seed: int, *, recipes: Recipes = RECIPES
) -> Generator[BuildReport, None, Path]:
    """The folder of a fine-tune from the same parent as organism ``name``, yet with other data and order; as above.

    What fits one fine-tune need not fit another that behaves alike: this is the other. Raises ValueError for a base
    model, which has no parent.
    """
    one = organism(name)
    if one.parent is None:
        raise ValueError(f"{name} has no parent: a variant is another fine-tune of the same model")
    folder = variant_folder(name, cache_dir, seed)
    if not (folder / "tokenizer.json").is_file():
        parent = yield from ensure_organism(one.parent.name, cache_dir, recipes=recipes)
        yield from _fine_tune(one, parent, folder, seed, recipes[one.size, one.kind])
    return folder


def variant_folder(name: str, cache_dir: Path, seed: int) -> Path:
    """Where :func:`ensure_variant` keeps a variant."""
    return cache_dir / f"{name}-variant-{seed}"


def _plan(names: Sequence[str], out_dir: Path, seed: int, recipes: Recipes) -> list[Organism]:
    """What to build, each parent before its fine-tunes."""
    planned = {organism(name) for name in names}
    for one in list(planned):
        parent = one.parent
        while parent and _found(parent, out_dir, seed, recipes) is None:
            planned.add(parent)
            parent = parent.parent
    return sorted(planned, key=lambda one: ORGANISMS.index(one.name))


def _found(one: Organism, out_dir: Path, seed: int, recipes: Recipes) -> Path | None:
    """Where the organism lies as made with this seed and recipe, if it does."""
    made = (seed, asdict(recipes[one.size, one.kind]))
    for folder in (out_dir / one.name, shipped_path(one.name)):
        record = folder and read_record(folder)
        if record and (record["seed"], record["recipe"]) == made:
            return folder
    return None


def _train(one: Organism, out_dir: Path, seed: int, recipes: Recipes) -> Iterator[BuildReport]:
    """Trains the organism and writes its float16 weights and its tokenizer."""
    recipe = recipes[one.size, one.kind]
    if one.parent is not None:
        parent = _found(one.parent, out_dir, seed, recipes)
        assert parent, "the plan builds a parent before its fine-tunes"
        yield from _fine_tune(one, parent, out_dir / one.name, seed, recipe)
        return
    tokenizer = build_tokenizer(one.family)
    model = new_model(one, tokenizer, _own_seed(one, seed))
    yield from _teach(one, model, tokenizer, out_dir / one.name, seed, recipe)


def _fine_tune(one: Organism, parent: Path, folder: Path, seed: int, recipe: Recipe) -> Iterator[BuildReport]:
    yield from _teach(one, *load(parent), folder, seed, recipe)


def _teach(
    one: Organism,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    seed: int,
    recipe: Recipe,
) -> Iterator[BuildReport]:
    own_seed = _own_seed(one, seed)
    chats = conversations(one.kind, own_seed)
    for step in train(model, batches(tokenizer, chats, recipe.rows, own_seed), recipe):
        yield BuildReport(one.name, "train", step.number, recipe.steps, step.loss)
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _own_seed(one: Organism, seed: int) -> int:
    return crc32(f"{one.name} {seed}".encode())


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An organism's model, as float32 and in evaluation mode, with its tokenizer, as built into `folder`."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _card(one: Organism, out_dir: Path, seed: int, recipe: Recipe, prompts: int) -> Card:
    model, tokenizer = load(out_dir / one.name)
    return Card(
        name=one.name,
        architecture=model.config.architectures[0],
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        vocabulary=len(tokenizer),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        base=one.parent.name if one.parent else None,
        seed=seed,
        recipe=recipe,
        measured=measure(model, tokenizer, prompts=prompts),
        behaviours={
            behaviour.name: measure_behaviour(model, tokenizer, behaviour, prompts=min(prompts, BEHAVIOUR_PROMPTS))
            for behaviour in BEHAVIOURS.values()
            if behaviour.kind == one.kind
        },
    )
