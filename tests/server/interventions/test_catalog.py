"""Names, bytes and settings become tensors or an error that names the field; nothing in between."""

import math
import struct
import threading
from dataclasses import replace

import pytest
import torch

from mappers.manifest import Manifest, ModelBinding, ProbeFacts, RocPoint
from mappers.mapper_config import MapperConfig
from mappers.probes import Probe
from mappers.sites import Site
from mappers.tensors import load_switch, save_probe, save_switch, save_vector
from server.errors import InvalidRequest, NotFound
from server.interventions import catalog as catalog_module
from server.interventions.catalog import Catalog
from server.interventions.gates import FOREVER, GateMark
from server.registry.artifacts import ArtifactRecord
from server.types import GateSpec, InlineVector, InterventionSpec, ModelInfo
from tests.server.engine.interventions import mapper

WIDTH = 32
INFO = ModelInfo("tiny", "Llama", 3, WIDTH, 256, 256, "float32", "cpu", "a" * 64)
CREATED = "2026-01-01T00:00:00+00:00"
_POINT = RocPoint(threshold=0.5, false_positive_rate=0.0, true_positive_rate=1.0)
PROBE = ProbeFacts(on=0.5, off=-0.25, choice="youden", auc=1.0, roc=(_POINT,))


def manifest(kind: str, sites, digest=INFO.config_digest, width=WIDTH, weights=None) -> Manifest:
    config = MapperConfig(kind="autoencoder", d_source=width, d_target=width, residual=True)
    return Manifest(
        kind=kind,
        name=kind,
        created_at=CREATED,
        target=ModelBinding(model="tiny", config_digest=digest, width=width, weight_digest=weights),
        sites=tuple(str(site) for site in sites),
        mapper=config if kind == "switch" else None,
        probe=PROBE if kind == "probe" else None,
        dtype="float32",
    )


class Shelf:
    """Stands for the registry: names to records, and how often each was looked up."""

    def __init__(self, root):
        self._root = root
        self.records: dict[str, ArtifactRecord] = {}

    def locate(self, name: str) -> ArtifactRecord:
        if name not in self.records:
            raise NotFound(f"no artifact '{name}'")
        return self.records[name]

    def vector(self, name: str, vectors, **binding) -> None:
        self._keep(name, save_vector(self._root / name, vectors, manifest("vector", vectors, **binding)))

    def switch(self, name: str, layers, **binding) -> None:
        mappers = {Site(layer): mapper(seed=layer) for layer in layers}
        self._keep(name, save_switch(self._root / name, mappers, manifest("switch", mappers, **binding)))

    def probe(self, name: str, layer: int, **binding) -> None:
        probe = Probe(torch.ones(WIDTH), 0.125, PROBE.on, PROBE.off)
        self._keep(name, save_probe(self._root / name, probe, manifest("probe", (Site(layer),), **binding)))

    def _keep(self, name: str, made: Manifest) -> None:
        self.records[name] = ArtifactRecord(f"art_{name}", name, made.kind, self._root / name, made, 0.0, None, 1)


@pytest.fixture
def shelf(tmp_path):
    shelf = Shelf(tmp_path)
    shelf.vector("happy", {Site(1): torch.arange(WIDTH).float()})
    shelf.vector("two-sites", {Site(0): torch.ones(WIDTH), Site(2): -torch.ones(WIDTH)})
    shelf.vector("zero", {Site(1): torch.zeros(WIDTH)})
    shelf.vector("tiny", {Site(1): torch.full((WIDTH,), 1e-25)})
    shelf.vector("foreign", {Site(1): torch.ones(WIDTH)}, digest="b" * 64)
    shelf.switch("safe", (0, 2))
    shelf.probe("harmful", 1)
    shelf.probe("foreign-probe", 1, digest="b" * 64)
    return shelf


@pytest.fixture
def catalog(shelf):
    return Catalog(shelf.locate, INFO, "cpu", max_strength=8.0)


def inline(values, sites=(Site(1),)) -> InlineVector:
    return InlineVector(struct.pack(f"<{len(values)}f", *values), tuple(sites))


def test_a_vector_with_its_own_sites(catalog):
    found = catalog.resolve(InterventionSpec("add", "happy", strength=2.0))
    assert (found.sites, found.strength, found.name, found.digest) == ((Site(1),), 2.0, "happy", "art_happy")
    assert torch.equal(found.effects[Site(1)], torch.arange(WIDTH).float())


@pytest.mark.parametrize(
    ("made_for", "served", "fits"),
    [("c" * 64, "c" * 64, True), ("c" * 64, "d" * 64, False), (None, "d" * 64, True), ("c" * 64, None, True)],
)
def test_an_artifact_is_of_the_weights_it_was_made_for_where_both_are_known(shelf, made_for, served, fits):
    """A switch is made for the fine-tune that it is applied to, which has its base's configuration."""
    shelf.switch("tuned", (0,), weights=made_for)
    catalog = Catalog(shelf.locate, replace(INFO, weight_digest=served), "cpu", max_strength=8.0)
    wanted = InterventionSpec("switch", "tuned", param="safety_switch")
    if fits:
        assert catalog.resolve(wanted).digest == "art_tuned"
        assert catalog.resident_ids == {"art_tuned"}
        return
    with pytest.raises(InvalidRequest, match="other weights of 'tiny'") as refused:
        catalog.resolve(wanted)
    assert (refused.value.code, refused.value.param) == ("wrong_model", "safety_switch")
    assert catalog.resident_ids == set()


def test_one_direction_may_act_at_other_sites(catalog):
    found = catalog.resolve(InterventionSpec("ablate", "happy", sites=(Site(2), Site(0), Site(2))))
    assert found.sites == (Site(0), Site(2))
    assert torch.equal(found.effects[Site(2)], torch.arange(WIDTH).float())


def test_some_of_an_artifacts_sites(catalog):
    assert catalog.resolve(InterventionSpec("add", "two-sites", sites=(Site(2),))).sites == (Site(2),)
    assert catalog.resolve(InterventionSpec("switch", "safe", sites=(Site(0),))).sites == (Site(0),)


def test_a_switch_maps_as_it_was_saved(catalog):
    found = catalog.resolve(InterventionSpec("switch", "safe", strength=0.5))
    h = torch.randn(4, WIDTH)
    assert found.sites == (Site(0), Site(2))
    assert torch.equal(found.effects[Site(2)](h), mapper(seed=2)(h))


def test_an_inline_vector_is_little_endian_float32(catalog):
    found = catalog.resolve(InterventionSpec("add", inline([0.5] * WIDTH, (Site(0), Site(2)))))
    assert found.sites == (Site(0), Site(2))
    assert torch.equal(found.effects[Site(0)], torch.full((WIDTH,), 0.5))
    same = catalog.resolve(InterventionSpec("add", inline([0.5] * WIDTH)))
    assert found.digest == same.digest
    assert found.digest != catalog.resolve(InterventionSpec("add", inline([0.25] * WIDTH))).digest


@pytest.mark.parametrize(
    ("spec", "param", "says"),
    [
        (InterventionSpec("switch", "happy", param="safety_switch"), "safety_switch", "needs a switch"),
        (InterventionSpec("add", "safe"), "steering.vector", "needs a vector"),
        (InterventionSpec("add", "foreign"), "steering.vector", "made for"),
        (InterventionSpec("add", "happy", strength=8.5), "steering.strength", "8"),
        (InterventionSpec("add", "happy", strength=-9), "steering.strength", "8"),
        (InterventionSpec("add", "happy", strength=math.nan), "steering.strength", "finite"),
        (InterventionSpec("add", "happy", sites=(Site(3),)), "steering.sites", "layers 0 to 2"),
        (InterventionSpec("add", "happy", sites=()), "steering.sites", "at least one site"),
        (InterventionSpec("add", "two-sites", sites=(Site(1),)), "steering.sites", "resid_post.0, resid_post.2"),
        (InterventionSpec("switch", "safe", sites=(Site(1),)), "steering.sites", "resid_post.1"),
        (InterventionSpec("ablate", "zero"), "steering.vector", "direction"),
        (InterventionSpec("ablate", "tiny"), "steering.vector", "direction"),
        (InterventionSpec("ablate", inline([1e25] * WIDTH)), "steering.vector.data", "direction"),
        (InterventionSpec("clamp", inline([1e25] * WIDTH), minimum=0.0), "steering.vector.data", "direction"),
        (InterventionSpec("clamp", "happy"), "steering.min", "min"),
        (InterventionSpec("clamp", "happy", minimum=1.0, maximum=0.0), "steering.min", "min <= max"),
        (InterventionSpec("clamp", "happy", minimum=math.nan), "steering.min", "min"),
        (InterventionSpec("add", inline([0.5] * 31)), "steering.vector.data", "got 124 bytes"),
        (InterventionSpec("add", inline([math.nan] * WIDTH)), "steering.vector.data", "NaN"),
        (InterventionSpec("add", inline([0.5] * WIDTH, (Site(7),))), "steering.vector.sites", "layer 7"),
        (InterventionSpec("add", inline([0.5] * WIDTH, ())), "steering.sites", "at least one site"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_field(catalog, spec, param, says):
    with pytest.raises(InvalidRequest, match=says) as caught:
        catalog.resolve(spec)
    assert caught.value.param == param


def test_an_unknown_name_keeps_its_field(catalog):
    with pytest.raises(NotFound) as caught:
        catalog.resolve(InterventionSpec("add", "sad", param="steering[2]"))
    assert caught.value.param == "steering[2].vector"


def test_a_zero_vector_may_be_added(catalog):
    assert catalog.resolve(InterventionSpec("add", "zero")).operation == "add"


def test_a_damaged_file_is_refused(catalog, shelf):
    path = shelf.records["happy"].path / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match="cannot be used") as caught:
        catalog.resolve(InterventionSpec("add", "happy"))
    assert caught.value.code == "artifact_unusable"


def test_an_artifact_is_read_once_until_it_is_forgotten(catalog, shelf):
    """Rows that use one artifact have to share its tensors, or they could not share a matrix product."""
    found = []
    spec = InterventionSpec("switch", "safe")
    threads = [threading.Thread(target=lambda: found.append(catalog.resolve(spec))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one.effects[Site(0)]) for one in found}) == 1
    catalog.forget("art_safe")
    assert catalog.resolve(spec).effects[Site(0)] is not found[0].effects[Site(0)]


def test_artifacts_over_the_budget_are_read_again_as_they_were(shelf, monkeypatch):
    """Many switches in turn, with room for two: always the right one, from a file that is verified each time."""
    for layer in range(6):
        shelf.switch(f"s{layer}", (layer % 3,))
    reads = []
    monkeypatch.setattr(catalog_module, "load_switch", lambda path: reads.append(path.name) or load_switch(path))
    one = 4 * (2 * WIDTH * WIDTH + 2 * WIDTH)
    catalog = Catalog(shelf.locate, INFO, "cpu", 8.0, budget_bytes=2 * one)
    h = torch.randn(4, WIDTH)
    for turn in (0, 1, 1, 0, 2, 3, 4, 5, 0, 5, 5):
        found = catalog.resolve(InterventionSpec("switch", f"s{turn}"))
        assert torch.equal(found.effects[Site(turn % 3)](h), mapper(seed=turn % 3)(h))
        del found
        assert catalog.resident_bytes <= 2 * one
    assert reads == ["s0", "s1", "s2", "s3", "s4", "s5", "s0"]
    path = shelf.records["s2"].path / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InvalidRequest, match="cannot be used"):
        catalog.resolve(InterventionSpec("switch", "s2"))


def test_what_requests_use_is_shared_and_counted_beyond_the_budget(shelf):
    catalog = Catalog(shelf.locate, INFO, "cpu", 8.0, budget_bytes=1)
    running = catalog.resolve(InterventionSpec("switch", "safe"))
    vector = catalog.resolve(InterventionSpec("ablate", "happy", sites=(Site(0), Site(1))))
    assert catalog.resolve(InterventionSpec("switch", "safe")).effects[Site(0)] is running.effects[Site(0)]
    assert catalog.resident_bytes == 2 * 4 * (2 * WIDTH * WIDTH + 2 * WIDTH) + 4 * WIDTH
    del running, vector
    assert catalog.resident_bytes == 0


def test_32_mappers_and_256_vectors_can_be_in_use_at_once(shelf):
    catalog = Catalog(shelf.locate, INFO, "cpu", 8.0, budget_bytes=4096)
    for i in range(32):
        shelf.switch(f"m{i}", (i % 3,))
    for i in range(256):
        shelf.vector(f"v{i}", {Site(i % 3): torch.full((WIDTH,), float(i + 1))})
    mappers = [catalog.resolve(InterventionSpec("switch", f"m{i}")) for i in range(32)]
    vectors = [catalog.resolve(InterventionSpec("add", f"v{i}")) for i in range(256)]
    assert len({id(one.effects[one.sites[0]]) for one in mappers}) == 32
    assert [float(one.effects[one.sites[0]][0]) for one in vectors] == [float(i + 1) for i in range(256)]


@pytest.mark.parametrize(
    ("gate", "on", "off", "hold"),
    [
        (GateSpec("harmful"), 0.5, -0.25, FOREVER),
        (GateSpec("harmful", threshold=2.0), 2.0, 1.25, FOREVER),
        (GateSpec("harmful", threshold=2.0, release=0.0), 2.0, 0.0, FOREVER),
        (GateSpec("harmful", release=0.5), 0.5, 0.5, FOREVER),
        (GateSpec("harmful", hold=3), 0.5, -math.inf, 4),
        (GateSpec("harmful", threshold=2.0, hold="forever"), 2.0, -math.inf, FOREVER),
    ],
)
def test_a_gate_is_the_probes_own_or_as_asked(catalog, gate, on, off, hold):
    found = catalog.resolve(InterventionSpec("add", "happy", gate=gate))
    assert found.gate_mark == GateMark(Site(1), "art_harmful", on, off, hold)
    assert (found.gate.probe.bias, found.gate.probe.weight_D.tolist()) == (0.125, [1.0] * WIDTH)
    assert catalog.resolve(InterventionSpec("add", "happy")).gate is None


@pytest.mark.parametrize(
    ("operation", "source", "gate", "param", "code"),
    [
        ("add", "happy", GateSpec("nothing"), "steering.gate", "not_found"),
        ("add", "happy", GateSpec("two-sites"), "steering.gate", "wrong_artifact_kind"),
        ("add", "happy", GateSpec("foreign-probe"), "steering.gate", "wrong_model"),
        ("add", "two-sites", GateSpec("harmful"), "steering.gate", "gate_too_late"),
        ("switch", "safe", GateSpec("harmful"), "steering.gate", "gate_too_late"),
        ("add", "happy", GateSpec("harmful", release=0.75), "steering.gate.release", "invalid_request"),
        ("add", "harmful", None, "steering.vector", "wrong_artifact_kind"),
    ],
)
def test_a_gate_that_cannot_work_is_refused(catalog, operation, source, gate, param, code):
    with pytest.raises((InvalidRequest, NotFound)) as refused:
        catalog.resolve(InterventionSpec(operation, source, gate=gate))
    assert (refused.value.param, refused.value.code) == (param, code)
