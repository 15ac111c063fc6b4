"""Turns pydantic's errors into one sentence about one field, as OpenAI's API words them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.errors import InvalidRequest

_WORDS = {
    "extra_forbidden": "unknown field: remove it, or see /docs for the fields there are",
    "missing": "this field is required",
    "finite_number": "must be a finite number",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "union_tag_not_found": "this field is required",
    "string_unicode": "must be valid Unicode without lone surrogates",
}
_LONGEST_FIELD = 200


def invalid_request(errors: Sequence[dict[str, Any]], body: object) -> InvalidRequest:
    """One error for the field that is most deeply wrong; ``body`` tells fields from the tags of unions.

    Errors about the same field (the members of a union) are joined by "or". Values are never repeated: they may be
    prompts.
    """
    paths = [_path(error, body) for error in errors]
    deepest = max(paths, key=len)
    about_it = [error for error, path in zip(errors, paths, strict=True) if path == deepest]
    words = dict.fromkeys(map(_words, about_it))
    param = dotted(deepest)
    code = "unknown_field" if about_it[0]["type"] == "extra_forbidden" else None
    where = f"{param}: " if param else "request body: "
    return InvalidRequest(where + ", or ".join(words), param=param or None, code=code)


def _path(error: dict[str, Any], body: object) -> tuple[str | int, ...]:
    """The error's location without union tags, which are elements that the value itself does not have."""
    place, *location = error["loc"]
    context = error.get("ctx", {})
    field = context.get("field") or context.get("discriminator", "").strip("'")
    if place != "body":
        return tuple(location)
    path: list[str | int] = []
    value: Any = body
    for position, element in enumerate(location):
        if _has(value, element):
            value = value[element]
            path.append(element)
        elif error["type"] == "missing" and position == len(location) - 1:
            path.append(element)
    return (*path, field) if field else tuple(path)


def _has(value: Any, element: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(element, int) and element < len(value)
    return isinstance(value, dict) and element in value


def _words(error: dict[str, Any]) -> str:
    if error["type"] == "union_tag_invalid":
        return f"must be one of {error['ctx']['expected_tags']}"
    message: str = _WORDS.get(error["type"], error["msg"])
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def dotted(path: tuple[str | int, ...]) -> str:
    """A place in a body as errors name it: ``steering[0].vector``; shortened, and printable whatever was sent."""
    text = ""
    for element in path:
        text += f"[{element}]" if isinstance(element, int) else f".{element}"
    return text.removeprefix(".")[:_LONGEST_FIELD].encode("utf-8", "replace").decode()
