"""Where the tokens of a forward lie, and what each group of them reads and writes."""

import random

import pytest
import torch

from server.engine import layout
from server.engine.kv import KvCache, LayerShape, PromptKv, Slot
from server.engine.layout import StepLayout
from server.engine.request import GenerationRequest
from server.engine.row import Row
from server.engine.scheduler import Batch
from server.types import SamplingParams

CPU = torch.device("cpu")
FULL = LayerShape(heads=2, key_size=4, value_size=3, window=None, dtype=torch.float32)
SLIDING = LayerShape(heads=2, key_size=4, value_size=3, window=8, dtype=torch.float32)


@pytest.fixture
def cache() -> KvCache:
    return KvCache([FULL, SLIDING], 200, CPU)


def reading(name: str, prompt: int, computed: int = 0, cache: KvCache | None = None) -> Row:
    request = GenerationRequest(name, tuple(range(prompt)), SamplingParams(max_tokens=100))
    row = Row(request, lambda _event: None, None, random.Random(0))
    row.state, row.computed = "prefill", computed
    if computed:
        row.kv = cache.begin(prompt)
    return row


def decoding(name: str, computed: int, cache: KvCache) -> Row:
    row = reading(name, computed, computed, cache)
    row.state = "decode"
    row.tokens.append(0)
    return row


def built(cache: KvCache, *parts: tuple[Row, int]) -> StepLayout:
    rows, counts = zip(*parts, strict=True)
    return StepLayout.build(Batch(rows, counts), cache, CPU)


def names(layout: StepLayout) -> list[str]:
    return [row.request.id for row in layout.rows]


def test_rows_lie_by_pool_and_slot_and_prompts_behind_them(cache):
    longer, short, longest = decoding("longer", 70, cache), decoding("short", 5, cache), decoding("longest", 150, cache)
    late, early = reading("late", 60, 20, cache), reading("early", 30)
    layout = built(cache, (longer, 1), (short, 1), (longest, 1), (late, 7), (early, 9))
    assert names(layout) == ["short", "longer", "longest", "early", "late"]
    assert layout.counts == (1, 1, 1, 9, 7)
    assert layout.firsts == [0, 1, 2, 3, 12]
    assert [(g.tokens, g.pool.capacity) for g in layout.decode] == [
        (slice(0, 1), 64),
        (slice(1, 2), 128),
        (slice(2, 3), 200),
    ]
    assert [(g.tokens, g.start, g.length) for g in layout.prompts] == [(slice(3, 12), 0, 9), (slice(12, 19), 20, 7)]


def test_equal_beginnings_are_one_group_and_equal_middles_are_not(cache):
    beginnings = [reading(f"b{i}", 30) for i in range(3)]
    middles = [reading(f"m{i}", 60, 20, cache) for i in range(2)]
    layout = built(cache, *((row, 10) for row in (*middles, *beginnings)), (reading("other", 4), 4))
    assert names(layout) == ["other", "b0", "b1", "b2", "m0", "m1"]
    assert [(len(g.prompts), g.tokens) for g in layout.prompts] == [
        (1, slice(0, 4)),
        (3, slice(4, 34)),
        (1, slice(34, 44)),
        (1, slice(44, 54)),
    ]


def test_rows_get_their_memory_when_they_need_it(cache):
    prompt, row = reading("prompt", 30), decoding("row", 64, cache)
    built(cache, (row, 1), (prompt, 10))
    assert isinstance(prompt.kv, PromptKv)
    assert isinstance(row.kv, Slot)
    assert row.kv.pool.capacity == 128
    before = (prompt.kv, row.kv)
    built(cache, (row, 1), (prompt, 10))
    assert (prompt.kv, row.kv) == before
    row.computed = 128
    built(cache, (row, 1), (prompt, 10))
    assert row.kv.pool.capacity == 200


def test_a_mask_only_where_rows_reach_differently_far(cache):
    same = built(cache, *((decoding(f"r{i}", 20, cache), 1) for i in range(2)))
    assert [reach.mask_n1T for reach in same.decode[0].reach] == [None, None]
    assert [reach.attended for reach in same.decode[0].reach] == [21, 8]
    rows = [slot.row for slot in cache.pools[0].slots]
    mixed = built(cache, *((row, 1) for row in rows), (decoding("short", 3, cache), 1))
    full, ring = mixed.decode[0].reach
    assert torch.isfinite(full.mask_n1T).sum(-1).flatten().tolist() == [21, 21, 4]
    assert torch.isfinite(ring.mask_n1T).sum(-1).flatten().tolist() == [8, 8, 4]
    assert ring.columns_n.tolist() == [20 % 8, 20 % 8, 3]


@pytest.mark.parametrize(("start", "length"), [(0, 5), (0, 8), (0, 12), (3, 4), (20, 1), (20, 9)])
def test_masks_of_chunks(cache, start, length):
    (group,) = built(cache, (reading("a", 60, start, cache), length)).prompts
    for kind, window in enumerate((60, 8)):
        seen = {q: set(range(max(0, q - window + 1), q + 1)) for q in range(start, start + length)}
        first, mask_PT = group.first_read[kind], group.mask_PT[kind]
        assert first <= min(map(min, seen.values()))
        if mask_PT is None:
            assert start == 0
            assert length <= window
            continue
        assert {q: {first + int(k) for k in mask_PT[q - start].nonzero()} for q in seen} == seen


def test_a_decode_group_writes_and_reads_its_own_columns(cache):
    rows = [decoding("a", 10, cache), decoding("b", 3, cache)]
    for row in rows:
        for held in (*row.kv.keys, *row.kv.values):
            held.fill_(7.0 if row is rows[0] else 8.0)
    (group,) = built(cache, *((row, 1) for row in rows)).decode
    key_HnE = torch.stack([torch.full((2, 4), 1.0), torch.full((2, 4), 2.0)], 1)
    value_HnF = -key_HnE[..., :3]
    keys, values, _ = group.write(0, key_HnE, value_HnF)
    assert keys[:, 0, :, 0].tolist() == [[7.0] * 10 + [1.0], [8.0] * 3 + [2.0] + [0.0] * 7]
    assert values[:, 1, [10, 3], 0].diagonal().tolist() == [-1.0, -2.0]
    keys, _, _ = group.write(1, key_HnE, value_HnF)
    assert keys[:, 0, :, 0].tolist() == [[7.0, 7.0, 1.0, *[7.0] * 5], [8.0] * 3 + [2.0] + [0.0] * 4]


def test_a_row_that_decodes_and_is_left_out_is_an_error(cache):
    """Its slot would be written as that of another row."""
    rows = [decoding("a", 10, cache), decoding("b", 3, cache)]
    built(cache, *((row, 1) for row in rows))
    with pytest.raises(AssertionError, match="takes part in every step"):
        built(cache, (rows[0], 1))


@pytest.mark.parametrize(("dtype", "attended"), [(torch.float32, 21), (torch.bfloat16, 32)])
def test_sixteen_bits_attend_to_few_numbers_of_columns(dtype, attended):
    assert layout._attended(21, 200, dtype) == attended
    assert layout._attended(198, 200, dtype) == (198 if dtype == torch.float32 else 200)
