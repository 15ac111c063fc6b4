"""Which tokens of a step an intervention touches: position arithmetic without tensors."""

from __future__ import annotations

from collections.abc import Sequence

from server.types import Apply, Positions


def active_offsets(apply: Apply, start: int, count: int, prompt_len: int) -> Sequence[int]:
    """Offsets in ``range(count)`` of the tokens at positions ``start .. start + count`` that ``apply`` selects.

    Positions below ``prompt_len`` are prompt, the others generated text, counted from 0 at its first token.
    """
    in_prompt = min(max(prompt_len - start, 0), count)
    prompt = _select(apply.prompt, start, in_prompt, prompt_len)
    generated_start = start + in_prompt - prompt_len
    generated = _select(apply.generation, generated_start, count - in_prompt, None)
    if not generated:
        return prompt
    if not prompt:
        return [in_prompt + offset for offset in generated] if in_prompt else generated
    return [*prompt, *(in_prompt + offset for offset in generated)]


def count_active(apply: Apply, start: int, count: int, prompt_len: int) -> tuple[int, int]:
    """How many prompt tokens and how many generated ones :func:`active_offsets` selects."""
    offsets = active_offsets(apply, start, count, prompt_len)
    in_prompt = sum(start + offset < prompt_len for offset in offsets)
    return in_prompt, len(offsets) - in_prompt


def next_change(positions: Positions, at: int) -> int | None:
    """The first generated position after ``at`` that is selected while ``at`` is not, or the reverse; None if none."""
    if positions.kind == "window":
        edges = {positions.start} if positions.stop is None else {positions.start, positions.stop}
    elif positions.kind == "listed":
        edges = set(positions.indices) ^ {index + 1 for index in positions.indices}
    else:
        return None
    return min((edge for edge in edges if edge > at), default=None)


def _select(positions: Positions, start: int, count: int, total: int | None) -> Sequence[int]:
    if count <= 0 or positions.kind == "none":
        return ()
    if positions.kind == "all":
        return range(count)
    if positions.kind == "last":
        return [total - 1 - start] if total is not None and start <= total - 1 < start + count else ()
    if positions.kind == "window":
        low = _from_end(positions.start, total)
        high = start + count if positions.stop is None else _from_end(positions.stop, total)
        return range(min(max(low - start, 0), count), min(max(high - start, 0), count))
    wanted = {_from_end(index, total) for index in positions.indices}
    return [offset for offset in range(count) if start + offset in wanted]


def _from_end(index: int, total: int | None) -> int:
    return index + total if index < 0 and total is not None else index
