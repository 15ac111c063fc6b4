import pytest
import torch

from mappers.activations.pairs import Reader, concatenate, paired_activations
from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.loading import load_model
from mappers.organisms import organism_path
from mappers.pair_sums import PairSums
from mappers.rendering import render
from mappers.sites import Site
from mappers.transfer_grid import Side, aligned_sites, map_vector
from mappers.vectors import transfer_linear

torch.set_num_threads(1)
ROWS = [DatasetRow(prompt=f"What is {a} + {b}?", completion=f"{a} + {b} = {a + b}") for a in (12, 31) for b in (4, 25)]


@pytest.fixture(scope="module")
def sides():
    def side(name: str, *layers: int) -> Side:
        loaded = load_model(str(organism_path(name)))
        texts = [render(loaded.tokenizer, row, answer=row.answer) for row in ROWS]
        return Side(loaded, tuple(map(Site, layers)), texts)

    return side("llama-small-base", 0, 2), side("qwen2-small-base", 1)


def test_one_reading_gives_the_pairs_of_every_two_sites(sides):
    source, target = sides
    x, y = aligned_sites(source, target, "offsets", batch_size=3, limit=10**6)
    for site in source.sites:
        single = concatenate(
            list(
                paired_activations(
                    Reader(source.loaded, site, source.texts),
                    Reader(target.loaded, Site(1), target.texts),
                    "offsets",
                    batch_size=1,
                )
            )
        )
        ours, theirs = torch.cat([x[site], y[Site(1)]], 1), torch.cat([single.x_NS, single.y_ND], 1)
        assert torch.allclose(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()], atol=1e-4)
    short, _ = aligned_sites(source, target, "offsets", batch_size=3, limit=9)
    assert torch.allclose(short[Site(0)], x[Site(0)][:9], atol=1e-4)


def test_a_vector_goes_where_the_ridge_map_takes_it(sides):
    source, target = sides
    x, y = aligned_sites(source, target, "offsets", batch_size=4, limit=10**6)
    v_S = torch.randn(source.loaded.stack.width, generator=torch.Generator().manual_seed(1))
    sums = PairSums(len(v_S), target.loaded.stack.width)
    sums.add(x[Site(2)], y[Site(1)])
    expected = transfer_linear(sums.ridge(ridge=1e-2), v_S)
    assert torch.allclose(map_vector(v_S, x[Site(2)], y, ridge=1e-2)[Site(1)], expected, rtol=1e-3, atol=1e-4)


def test_texts_without_a_pair_are_refused(sides):
    source, target = sides
    empty = Side(source.loaded, source.sites, []), Side(target.loaded, target.sites, [])
    with pytest.raises(DataError, match="no token"):
        aligned_sites(*empty, "offsets", batch_size=2, limit=10)
