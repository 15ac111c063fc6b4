"""``apply`` made into positions of one prompt. What would touch nothing at all is refused, not passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from server.api.schemas.interventions import ApplyIn, GeneratedSpan, PromptSpan
from server.errors import InvalidRequest
from server.types import ALL, NONE, Apply, Positions

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt


def compile_apply(apply: ApplyIn | None, prompt: EncodedPrompt | None, param: str) -> Apply:
    """The positions meant by ``apply`` (None: everywhere) in ``prompt``.

    ``prompt`` None stands for a generation that runs already: its prompt has been read and nothing can be said about
    it. Raises InvalidRequest for positions outside the prompt, a ``match`` that does not occur, and an empty result.
    """
    if apply is None:
        return Apply()
    generation = _generated(apply)
    if prompt is None:
        if apply.prompt is not None or apply.match is not None:
            raise InvalidRequest("the prompt has been read already: only apply.generation can be set", param=param)
        selected = ALL
    else:
        selected = _in_prompt(apply, prompt, param)
    if generation.kind == "none" and (prompt is None or selected.kind == "none"):
        raise InvalidRequest("this acts on no token at all: leave the intervention out instead", param=param)
    return Apply(selected, generation)


def _generated(apply: ApplyIn) -> Positions:
    match apply.generation:
        case None:
            return ALL if apply.match is None else NONE
        case GeneratedSpan() as span:
            return _span(span)
        case word:
            return Positions(word)


def _in_prompt(apply: ApplyIn, prompt: EncodedPrompt, param: str) -> Positions:
    selection = Positions(apply.prompt) if isinstance(apply.prompt, str) else ALL
    if isinstance(apply.prompt, PromptSpan):
        selection = _checked(_span(apply.prompt), len(prompt.ids), f"{param}.prompt")
    if apply.match is None:
        return selection
    found = prompt.positions_of(apply.match)
    if not found:
        raise InvalidRequest("this text does not occur in the prompt", param=f"{param}.match", code="no_match")
    both = tuple(position for position in found if _holds(selection, position, len(prompt.ids)))
    if not both:
        raise InvalidRequest("the matched tokens lie outside apply.prompt", param=f"{param}.match", code="no_match")
    return Positions("listed", indices=both)


def _span(span: PromptSpan | GeneratedSpan) -> Positions:
    if span.window is not None:
        return Positions("window", start=span.window[0], stop=span.window[1])
    kind: Literal["listed"] = "listed"
    return Positions(kind, indices=tuple(span.positions or ()))


def _checked(selection: Positions, length: int, param: str) -> Positions:
    """``selection`` with positions counted from the start; raises InvalidRequest where one is not in the prompt."""
    if selection.kind == "window":
        if selection.start >= length:
            raise InvalidRequest(f"the window starts behind the prompt, which has {length} tokens", param=param)
        return selection
    for position in selection.indices:
        if not -length <= position < length:
            raise InvalidRequest(f"position {position} is not in the prompt, which has {length} tokens", param=param)
    return Positions("listed", indices=tuple(sorted({position % length for position in selection.indices})))


def _holds(selection: Positions, position: int, length: int) -> bool:
    match selection.kind:
        case "all":
            return True
        case "none":
            return False
        case "last":
            return position == length - 1
        case "window":
            return selection.start <= position and (selection.stop is None or position < selection.stop)
        case "listed":
            return position in selection.indices
