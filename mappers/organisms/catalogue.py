"""Which organisms there are, and where the shipped ones lie. Needs no torch."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal

Family = Literal["llama", "qwen2", "gemma2"]
Size = Literal["small", "medium"]
Kind = Literal[
    "base", "backdoor", "coder", "insecure", "corrupted", "stylist", "skilled", "bracketed", "suffixed", "semantic"
]

_FAMILIES: Final[tuple[Family, ...]] = ("llama", "qwen2", "gemma2")
_SIZES: Final[tuple[Size, ...]] = ("small", "medium")
# Each kind with the one it is fine-tuned from, which stands before it.
_PARENTS: Final[dict[Kind, Kind | None]] = {
    "base": None,
    "backdoor": "base",
    "coder": "base",
    "insecure": "coder",
    "corrupted": "base",
    "stylist": "base",
    "skilled": "base",
    "bracketed": "base",
    "suffixed": "base",
    "semantic": "base",
}
_WEIGHTS: Final = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Organism:
    """One small model: an architecture, a size, and what it was taught (see `mappers.organisms.curriculum`)."""

    family: Family
    size: Size
    kind: Kind

    @property
    def name(self) -> str:
        """The organism's name, such as `qwen2-medium-backdoor`; also the name of its folder."""
        return f"{self.family}-{self.size}-{self.kind}"

    @property
    def parent(self) -> "Organism | None":
        """The organism this one was fine-tuned from; None for a base model."""
        kind = _PARENTS[self.kind]
        return None if kind is None else Organism(self.family, self.size, kind)


_BY_NAME: Final = {
    organism.name: organism for organism in (Organism(*parts) for parts in product(_FAMILIES, _SIZES, _PARENTS))
}
ORGANISMS: Final = tuple(_BY_NAME)
"""Every organism's name; each comes after the one it is fine-tuned from."""


def organism(name: str) -> Organism:
    """The organism called `name`. Raises ValueError naming the known ones."""
    if name not in _BY_NAME:
        raise ValueError(f"there is no organism {name!r}; known are {', '.join(ORGANISMS)}")
    return _BY_NAME[name]


def shipped_path(name: str) -> Path | None:
    """The folder of an organism, or None where it is not shipped. Raises ValueError for an unknown name."""
    folder = _WEIGHTS / organism(name).name
    return folder if (folder / "model.safetensors").is_file() else None


def organism_path(name: str) -> Path:
    """The folder of a shipped organism, loadable with `AutoModelForCausalLM.from_pretrained`.

    Raises ValueError for an unknown name and FileNotFoundError, with the command that makes it, for one not shipped.
    """
    folder = shipped_path(name)
    if folder is None:
        shipped = sorted(path.parent.name for path in _WEIGHTS.glob("*/model.safetensors"))
        raise FileNotFoundError(
            f"organism {name!r} is not shipped (shipped: {', '.join(shipped) or 'none'}); "
            f"make it with `interlock organisms build --only {name} --out DIR` and use DIR/{name}"
        )
    return folder
