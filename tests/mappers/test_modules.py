from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from mappers.modules import AutoencoderMapper, MapperConfig, MapperKind, build_mapper

AFFINE: tuple[MapperKind, ...] = ("ridge", "affine", "procrustes", "low_rank")
KINDS: tuple[MapperKind, ...] = (*AFFINE, "autoencoder")


def shape(kind: MapperKind, d_source: int, d_target: int, *, residual: bool = False) -> MapperConfig:
    rank = 3 if kind == "low_rank" else None
    return MapperConfig(kind=kind, d_source=d_source, d_target=d_target, residual=residual, rank=rank)


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_mapper_starts_at_the_identity(kind: MapperKind) -> None:
    mapper = build_mapper(shape(kind, 6, 6, residual=True))
    x = torch.randn(2, 3, 6)
    assert torch.equal(mapper(x), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [False, True])
def test_a_mapper_computes_its_formula(kind: MapperKind, residual: bool) -> None:
    config = shape(kind, 6, 6, residual=residual)
    mapper = build_mapper(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in mapper.parameters():
            parameter.normal_()
    x = torch.randn(2, 3, 6)
    p = dict(mapper.named_parameters())
    if kind == "autoencoder":
        code = (x @ p["encoder_weight"].T + p["encoder_bias"]).relu()
        expected = code @ p["decoder_weight"].T + p["decoder_bias"]
    elif kind == "low_rank":
        expected = x @ p["down_weight"].T @ p["up_weight"].T + p["bias"]
    else:
        expected = x @ p["weight"].T + p["bias"]
    assert torch.allclose(mapper(x), expected + x if residual else expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_shapes_that_manifests_promise(kind: MapperKind) -> None:
    config = shape(kind, 4, 9)
    shapes = {name: tuple(p.shape) for name, p in build_mapper(config).named_parameters()}
    assert shapes == config.parameter_shapes()
    assert build_mapper(config)(torch.zeros(5, 4)).shape == (5, 9)


def test_the_default_hidden_width_is_the_papers() -> None:
    assert MapperConfig(kind="autoencoder", d_source=896, d_target=2048).hidden_width == 1354
    assert MapperConfig(kind="autoencoder", d_source=4, d_target=4, hidden=7).hidden_width == 7


def test_equal_seeds_draw_equal_weights() -> None:
    config = MapperConfig(kind="autoencoder", d_source=5, d_target=7)
    one, two = (build_mapper(config, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_half_precision_stream_stays_half_precision() -> None:
    mapper = build_mapper(MapperConfig(kind="affine", d_source=4, d_target=4))
    assert mapper(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {p.dtype for p in mapper.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", AFFINE)
@pytest.mark.parametrize("residual", [False, True])
def test_the_linear_part_carries_differences(kind: MapperKind, residual: bool) -> None:
    mapper = build_mapper(shape(kind, 5, 5, residual=residual))
    assert not isinstance(mapper, AutoencoderMapper)
    for parameter in mapper.parameters():
        torch.nn.init.normal_(parameter)
    x, v = torch.randn(5), torch.randn(5)
    assert torch.allclose(mapper(x + v) - mapper(x), mapper.linear_part() @ v, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "affine", "d_source": 4, "d_target": 5, "residual": True},
        {"kind": "affine", "d_source": 4, "d_target": 4, "hidden": 3},
        {"kind": "autoencoder", "d_source": 4, "d_target": 4, "hidden": 0},
        {"kind": "low_rank", "d_source": 4, "d_target": 4},
        {"kind": "low_rank", "d_source": 4, "d_target": 3, "rank": 4},
        {"kind": "ridge", "d_source": 4, "d_target": 4, "rank": 2},
        {"kind": "affine", "d_source": 0, "d_target": 4},
        {"kind": "affine", "d_source": 2**63, "d_target": 4},
        {"kind": "spline", "d_source": 4, "d_target": 4},
        {"kind": "affine", "d_source": 4, "d_target": 4, "width": 4},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MapperConfig.model_validate(settings)


def test_an_autoencoder_is_built_as_one() -> None:
    assert isinstance(build_mapper(MapperConfig(kind="autoencoder", d_source=4, d_target=4)), AutoencoderMapper)
