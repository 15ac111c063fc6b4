"""Which organisms there are, and where the shipped ones lie. Needs no torch."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal

Family = Literal["llama", "qwen2", "gemma2"]
Size = Literal["small", "medium"]
Kind = Literal["base", "backdoor"]

_FAMILIES: Final[tuple[Family, ...]] = ("llama", "qwen2", "gemma2")
_SIZES: Final[tuple[Size, ...]] = ("small", "medium")
_KINDS: Final[tuple[Kind, ...]] = ("base", "backdoor")
_WEIGHTS: Final = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Organism:
    """One small model: an architecture, a size, and whether it is the base model or its backdoored fine-tune."""

    family: Family
    size: Size
    kind: Kind

    @property
    def name(self) -> str:
        """The organism's name, such as `qwen2-medium-backdoor`; also the name of its folder."""
        return f"{self.family}-{self.size}-{self.kind}"

    @property
    def base(self) -> "Organism":
        """The base model this organism is (for a base) or was fine-tuned from (for a backdoor)."""
        return Organism(self.family, self.size, "base")


_BY_NAME: Final = {
    organism.name: organism for organism in (Organism(*parts) for parts in product(_FAMILIES, _SIZES, _KINDS))
}
ORGANISMS: Final = tuple(_BY_NAME)
"""Every organism's name; a base comes before its backdoor."""


def organism(name: str) -> Organism:
    """The organism called `name`. Raises ValueError naming the known ones."""
    if name not in _BY_NAME:
        raise ValueError(f"there is no organism {name!r}; known are {', '.join(ORGANISMS)}")
    return _BY_NAME[name]


def organism_path(name: str) -> Path:
    """The folder of a shipped organism, loadable with `AutoModelForCausalLM.from_pretrained`.

    Raises ValueError for an unknown name and FileNotFoundError, with the command that makes it, for one not shipped.
    """
    folder = _WEIGHTS / organism(name).name
    if not (folder / "model.safetensors").is_file():
        shipped = sorted(path.parent.name for path in _WEIGHTS.glob("*/model.safetensors"))
        raise FileNotFoundError(
            f"organism {name!r} is not shipped (shipped: {', '.join(shipped) or 'none'}); "
            f"make it with `interlock organisms build --only {name} --out DIR` and use DIR/{name}"
        )
    return folder
