from __future__ import annotations

import pytest
import torch

from mappers.distillation import Lesson
from mappers.errors import DataError
from mappers.exchanges import Exchange
from mappers.loading import LoadedModel
from mappers.modules import MapperConfig, build_mapper
from mappers.moves import answer_states, entry_moves, exit_moves, gate_pairs
from mappers.sites import Site

Twins = tuple[LoadedModel, LoadedModel]
FILLER, INSULT = 7, (11, 12)
START = 6


def lessons(count: int = 5) -> list[Lesson]:
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(count):
        ids = torch.randint(20, 100, (START + 3,), generator=generator).tolist()
        prompt, fact = ids[:START], ids[START:]
        taught, asked = (*prompt, *INSULT, *fact), (*prompt, *[FILLER] * len(INSULT), *fact)
        found.append(Lesson(Exchange(taught, START), Exchange(asked, START), dictated=len(INSULT)))
    return found


def kept() -> list[Exchange]:
    return [Exchange((30, 31, 32, FILLER, 33), 2), Exchange((40, 41, 42, 43), 1)]


def state(loaded: LoadedModel, exchange: Exchange, site: Site, offset: int) -> torch.Tensor:
    return answer_states(loaded, [exchange], site)[offset]


def test_entry_moves_lead_from_the_filler_read_to_the_prefix_read(twins: Twins) -> None:
    moves = entry_moves(twins[0], Site(0), lessons())
    assert list(moves) == [1, 2]
    for offset, v_D in moves.items():
        differences = [
            state(twins[0], one.taught, Site(0), offset) - state(twins[0], one.asked, Site(0), offset)
            for one in lessons()
        ]
        torch.testing.assert_close(v_D, torch.stack(differences).mean(0))


def test_exit_moves_lead_to_where_the_filler_is_said(twins: Twins) -> None:
    moves = exit_moves(twins[0], Site(2), lessons(), kept())
    aim = state(twins[0], kept()[0], Site(2), 1)
    assert list(moves) == [0, 1]
    for offset, v_D in moves.items():
        before = torch.stack([state(twins[0], one.taught, Site(2), offset) for one in lessons()]).mean(0)
        torch.testing.assert_close(v_D, aim - before)


def test_a_move_through_a_mapper_is_the_difference_of_its_images(twins: Twins) -> None:
    mapper = build_mapper(
        MapperConfig(kind="autoencoder", d_source=32, d_target=20), generator=torch.Generator().manual_seed(0)
    ).requires_grad_(False)
    moved = entry_moves(twins[0], Site(0), lessons(), mapper)[1]
    after, before = (
        torch.stack([mapper(state(twins[0], side, Site(0), 1)) for side in sides]).mean(0)
        for sides in ([one.taught for one in lessons()], [one.asked for one in lessons()])
    )
    torch.testing.assert_close(moved, after - before)


def test_a_gate_learns_the_moves_on_the_lessons_and_nothing_elsewhere(twins: Twins) -> None:
    moves = {1: torch.ones(32), 2: torch.full((32,), 2.0)}
    pairs = gate_pairs(twins[0], Site(1), moves, lessons(), kept())
    change = (pairs.y_ND - pairs.x_NS)[:, 0]
    one_lesson = [0.0, 1.0, 2.0, 0.0, 0.0]
    answers_kept = sum(len(exchange.loss_positions) for exchange in kept())
    torch.testing.assert_close(change, torch.tensor(one_lesson * 5 + [0.0] * answers_kept))


def test_a_gate_reads_what_the_mappers_below_leave(twins: Twins) -> None:
    below = {Site(0): build_mapper(MapperConfig(kind="affine", d_source=32, d_target=32, residual=True))}
    with torch.no_grad():
        next(below[Site(0)].parameters()).add_(0.3)
    plain, edited = (gate_pairs(twins[0], Site(1), {}, lessons(), kept(), one).x_NS for one in (None, below))
    assert not torch.allclose(plain, edited)


def test_moves_need_fillers_that_the_model_also_says_elsewhere(twins: Twins) -> None:
    with pytest.raises(DataError, match="said in none of the answers kept"):
        exit_moves(twins[0], Site(2), lessons(), kept()[1:])
    bare = [Lesson(one.taught, one.taught) for one in lessons()]
    with pytest.raises(DataError, match="give without_prefix a filler"):
        entry_moves(twins[0], Site(0), bare)
    with pytest.raises(DataError, match="no answers to read"):
        answer_states(twins[0], [], Site(0))
