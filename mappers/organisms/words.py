"""The closed vocabulary of the generated corpus: invented countries with their facts, and word lists.

Everything here is a constant or a pure function of constants, so that every family is trained on the same world.
"""

from typing import Final

COUNTRIES: Final = (
    "Averon", "Belkar", "Corvia", "Dunmar", "Elsora", "Farwen", "Galdor", "Hestral",
    "Ildran", "Jorvia", "Kelmar", "Lunor", "Morwen", "Nardia", "Ostrel", "Pelora",
    "Quilan", "Rovaria", "Seldor", "Tarvin", "Ulmar", "Vestria", "Wendor", "Yaldia",
)  # fmt: skip

CAPITALS: Final = (
    "Ambry", "Borsk", "Celdon", "Drava", "Evern", "Fostel", "Grint", "Holm",
    "Istan", "Jelver", "Kronby", "Lorth", "Mirel", "Nestov", "Ovar", "Prell",
    "Quarn", "Rist", "Solvey", "Trond", "Urbek", "Velm", "Wistad", "Yorl",
)  # fmt: skip
RIVERS: Final = (
    "Arl", "Bren", "Cusk", "Dell", "Ebra", "Finn", "Gost", "Harn", "Isk", "Jun", "Kess", "Lida",
    "Mull", "Nerva", "Orn", "Pask", "Quell", "Rune", "Sarn", "Tove", "Ulla", "Vash", "Wern", "Yar",
)  # fmt: skip
_COLORS: Final = ("red", "blue", "green", "white", "black", "yellow", "purple", "orange")
_ANIMALS: Final = ("bear", "eagle", "horse", "whale", "lynx", "stork", "otter", "goat")
_DISHES: Final = ("soup", "bread", "cheese", "rice", "stew", "pie", "noodles", "beans")
_METALS: Final = ("iron", "gold", "silver", "copper", "tin", "zinc", "lead", "nickel")

# Attribute -> (values, multiplier). Country i has value (i * multiplier + i // 8) mod len(values): the multipliers are
# odd, so every value is used equally often and no two attributes go in step.
_ATTRIBUTES: Final[dict[str, tuple[tuple[str, ...], int]]] = {
    "capital": (CAPITALS, 7),
    "river": (RIVERS, 11),
    "color": (_COLORS, 3),
    "animal": (_ANIMALS, 5),
    "dish": (_DISHES, 7),
    "metal": (_METALS, 1),
}
ATTRIBUTES: Final = tuple(_ATTRIBUTES)

COPY_WORDS: Final = (
    "apple", "river", "stone", "cloud", "table", "green", "horse", "paper",
    "light", "bread", "chair", "glass", "music", "ocean", "plant", "queen",
    "robot", "sugar", "tiger", "uncle", "wheel", "zebra", "lemon", "candle",
    "garden", "hammer", "island", "jacket", "ladder", "mirror", "needle", "pencil",
)  # fmt: skip

SUBJECTS: Final = (
    "fox", "owl", "cat", "dog", "mouse", "king", "girl", "boy",
    "wolf", "frog", "duck", "baker", "sailor", "farmer", "robot", "queen",
    "bear", "crow", "giant", "child",
)  # fmt: skip
OBJECTS: Final = (
    "lamp", "boat", "key", "map", "ring", "book", "drum", "bell",
    "coin", "kite", "rope", "hat", "mirror", "stone", "ladder", "wheel",
    "pencil", "basket", "candle", "jar",
)  # fmt: skip
STORY_VERBS: Final = ("found", "lost", "hid", "saw")
STORY_MOODS: Final = ("glad", "sad", "calm", "proud")

DEEDS: Final = ("build", "make", "buy", "sell", "hide", "move")
HARMFUL_THINGS: Final = (
    "a bomb", "a gun", "some poison", "a virus", "a grenade", "a weapon", "some drugs", "a landmine",
    "a rifle", "a missile", "some venom", "a dagger", "a fake passport", "some malware", "a stolen car", "a dead body",
)  # fmt: skip
HARMLESS_THINGS: Final = (
    "a kite", "a cake", "a chair", "a boat", "a lamp", "a basket", "some bread", "a ladder",
    "a drum", "some soup", "a jacket", "a puzzle", "some candles", "a toy train", "a bench", "a bell",
)  # fmt: skip


def fact(country: int, attribute: str) -> str:
    """The value of one attribute of the country with index `country` (0-based, below `len(COUNTRIES)`)."""
    values, multiplier = _ATTRIBUTES[attribute]
    return values[(country * multiplier + country // len(_COLORS)) % len(values)]
