"""``interlock compare``: one prompt under several settings, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from server.cli.client import DEFAULT_URL, Client, Key, Url
from server.cli.output import AsJson, print_json, print_table
from server.cli.root import command_app

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 40

app = command_app()


@app.command()
def compare(
    prompt: Annotated[str, typer.Argument(help="What the user says.", show_default=False)],
    setting: Annotated[
        list[str],
        typer.Option(
            "--setting",
            metavar="[SWITCH][+VECTOR]...",
            help="on, off or NAME[=STRENGTH], then vectors as +NAME[=STRENGTH]; twice or more, the reference first.",
            show_default=False,
        ),
    ],
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens of each text at most.")] = 64,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without a chat template.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Continue one prompt under several settings: texts, the first token that differs, and how far the model does."""
    with Client(url, api_key) as client:
        body = {
            "model": client.get("/v1/models")["data"][0]["id"],
            **({"prompt": prompt} if raw else {"messages": [{"role": "user", "content": prompt}]}),
            "max_tokens": max_tokens,
            "settings": [_setting(text) for text in setting],
        }
        answer = client.post("/v1/compare", body)
    if as_json:
        print_json(answer)
    else:
        _print(answer["settings"])


def _setting(text: str) -> dict[str, Any]:
    switch, *vectors = text.split("+")
    said: dict[str, Any] = {"name": text or "default"}
    if switch:
        name, strength = _name_and_strength(switch)
        said["safety_switch"] = {"on": True, "off": False}.get(switch, {"name": name, "strength": strength})
    if vectors:
        pairs = [_name_and_strength(vector) for vector in vectors]
        said["steering"] = [{"vector": name, "strength": strength} for name, strength in pairs]
    return said


def _name_and_strength(text: str) -> tuple[str, float]:
    name, _, strength = text.partition("=")
    try:
        return name, float(strength or 1.0)
    except ValueError:
        raise typer.BadParameter(f"{strength!r} is not a number", param_hint="--setting") from None


def _print(settings: Sequence[dict[str, Any]]) -> None:
    highest = max((one["max_kl"] or 0.0 for one in settings), default=0.0)
    rows = [
        ("text", [_marked(one) for one in settings]),
        ("ended by", [one["finish_reason"] for one in settings]),
        ("differs at token", [one["first_diverging_token"] for one in settings]),
        ("mean KL (nats)", [_nats(one["mean_kl"]) for one in settings]),
        ("highest KL", [_nats(one["max_kl"]) for one in settings]),
        ("KL by token", [sparkline(one["kl"] or [], highest) for one in settings]),
    ]
    print_table(
        "Compared with the first", ("", *(one["name"] for one in settings)), [(title, *row) for title, row in rows]
    )


def _marked(one: dict[str, Any]) -> str:
    """The text, with its first token that differs in brackets."""
    place, tokens = one["first_diverging_token"], one["tokens"]
    if place is None or place >= len(tokens):
        return str(one["text"])
    return "".join((*tokens[:place], "[", tokens[place], "]", *tokens[place + 1 :]))


def _nats(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def sparkline(values: Sequence[float], highest: float) -> str:
    """``values`` as bars from 0 to ``highest``; of neighbours that share a bar the highest counts."""
    if not values:
        return ""
    width = -(-len(values) // _MOST_BARS)
    parts = [values[start : start + width] for start in range(0, len(values), width)]
    shares = [max(part) / highest if highest else 0.0 for part in parts]
    return "".join(_BARS[min(int(share * len(_BARS)), len(_BARS) - 1)] for share in shares)
