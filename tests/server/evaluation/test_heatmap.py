from io import BytesIO
from math import nan

import numpy as np
from matplotlib.image import imread

from server.evaluation.heatmap import Axis, heat_map

LAYERS, STRENGTHS = Axis("layer", ["0", "1"]), Axis("strength", ["0.5", "1", "2"])


def pixels(png: bytes) -> np.ndarray:
    return imread(BytesIO(png))[..., :3]


def red(picture: np.ndarray) -> int:
    return int(((picture[..., 0] > 0.9) & (picture[..., 1] < 0.1) & (picture[..., 2] < 0.1)).sum())


def test_the_chosen_cell_is_framed_and_equal_tables_give_equal_pictures():
    values = [[0.0, 0.5, nan], [0.1, 0.9, 1.0]]
    plain = heat_map(values, LAYERS, STRENGTHS, title="t", scale="s")
    framed = heat_map(values, LAYERS, STRENGTHS, title="t", scale="s", chosen=(1, 1))
    assert framed.startswith(b"\x89PNG")
    assert red(pixels(plain)) == 0
    assert red(pixels(framed)) > 200
    assert framed == heat_map(values, LAYERS, STRENGTHS, title="t", scale="s", chosen=(1, 1))


def test_a_large_table_stays_a_picture_of_bounded_size():
    picture = pixels(heat_map([[0.5] * 40] * 50, Axis("l", ["x"] * 50), Axis("s", ["y"] * 40), title="", scale=""))
    assert max(picture.shape) <= 18 * 110
