"""``interlock receipts``: verify that a saved answer is what a server gave, and what was done to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.client import DEFAULT_URL, Client, CommandFailed, Key, Url
from server.cli.output import AsJson, print_fields, print_json
from server.cli.root import command_app

app = command_app(no_args_is_help=True, help="Verify what was done to an answer.")


@app.callback()
def receipts() -> None:
    """Verify what was done to an answer."""  # a group of one command, so that others can join it


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An answer, whole or as it was streamed.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Verify a signed answer (`"sign_receipt": true`): signature, text, and what it says was done. Exit code 1 if not.

    FILE is the body of an answer, or the events of a stream as curl prints them.
    """
    texts, interlock = _read(file)
    signature = interlock.get("signature")
    if not isinstance(signature, dict):
        raise CommandFailed(f'{file} holds no signature: ask with "sign_receipt": true')
    with Client(url, api_key) as client:
        found = client.post("/v1/receipts/verify", signature)
    problem = found["problem"] or _difference(found["receipt"], texts, interlock)
    if as_json:
        print_json({**found, "valid": problem is None, "problem": problem})
    elif problem is None:
        print_fields(found["receipt"])
    if problem is not None:
        raise CommandFailed(f"{file} does not verify: {problem}")


def _read(file: Path) -> tuple[dict[int, str], dict[str, Any]]:
    """The text of each choice, and what the answer says was done."""
    texts: dict[int, str] = {}
    interlock: dict[str, Any] = {}
    try:
        for part in _parts(file.read_text(encoding="utf-8")):
            for choice in part.get("choices", ()):
                texts[choice["index"]] = texts.get(choice["index"], "") + _text(choice)
            interlock = dict(part.get("interlock", interlock))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CommandFailed(f"{file} is no answer of a chat or a completion") from None
    return texts, interlock


def _parts(content: str) -> Iterator[Any]:
    if not content.lstrip().startswith("data:"):
        yield json.loads(content)
        return
    for line in content.splitlines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _text(choice: Mapping[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    return str(choice.get("message", choice.get("delta", {})).get("content") or "")


def _difference(receipt: Mapping[str, Any], texts: Mapping[int, str], interlock: Mapping[str, Any]) -> str | None:
    signed = {answer["choice"]: answer["text_sha256"] for answer in receipt["answers"]}
    if signed != {choice: sha256(text.encode()).hexdigest() for choice, text in texts.items()}:
        return "its text is not the one that was signed"
    said = {name: value for name, value in interlock.items() if name != "signature"}
    if said != {name: receipt.get(name) for name in said}:
        return "what it says was done is not what was signed"
    return None
