"""Switches, mappers, vectors and probes as safetensors: each saved and loaded by two adjacent functions.

A folder holds ``tensors.safetensors`` and ``manifest.json``. The tensor file's header repeats the manifest (without
``files``), so that the one file is the whole artifact when it is downloaded or uploaded. Everything is float32.

Shapes: D = width of the target model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mappers.artifact import HEADER_KEY, TENSOR_FILE, canonical_json, read_manifest, seal, staged_file
from mappers.artifact import verify as verify_files
from mappers.drift import DriftMonitor
from mappers.errors import ArtifactCorrupt, ArtifactMismatch
from mappers.manifest import ArtifactKind, Manifest
from mappers.modules import Mapper, zero_mapper
from mappers.probes import Probe
from mappers.sites import Site


def save_switch(
    folder: Path,
    mappers: Mapping[Site, Mapper],
    manifest: Manifest,
    monitors: Mapping[Site, DriftMonitor] = MappingProxyType({}),
) -> Manifest:
    """Writes mappers, and monitors where there are any, per site; then the manifest, returned with ``files`` filled in.

    Raises ArtifactMismatch where the manifest describes other sites, shapes or another kind, or a value is not finite.
    """
    _expect(manifest, "switch")
    watched = {f"{site}.{name}": t for site, one in monitors.items() for name, t in one.tensors().items()}
    return _save(folder, _flatten(mappers) | watched, manifest)


def load_monitors(folder: Path) -> dict[Site, DriftMonitor]:
    """The monitors of a switch, at the sites that have one; errors as :func:`load_switch`, sha256 left unchecked."""
    manifest, tensors = _load(folder, "switch", verify=False)
    return {
        Site.parse(site): DriftMonitor.of({name: tensors[f"{site}.{name}"] for name in facts.shapes(0)})
        for site, facts in manifest.drift.items()
    }


def load_switch(folder: Path, *, verify: bool = True) -> tuple[Manifest, dict[Site, Mapper]]:
    """Reads a switch; ``verify`` checks the files' sha256 first. Mappers come without gradients, on the CPU.

    Raises ArtifactCorrupt for damaged files and ArtifactMismatch for an artifact of another kind.
    """
    manifest, tensors = _load(folder, "switch", verify=verify)
    return manifest, {site: _restore(manifest, site, tensors) for site in manifest.target_sites}


def save_mapper(folder: Path, mapper: Mapper, manifest: Manifest) -> Manifest:
    """Writes a mapper between the manifest's one source site and one target site; as :func:`save_switch`."""
    _expect(manifest, "mapper")
    return _save(folder, _flatten({manifest.target_sites[0]: mapper}), manifest)


def load_mapper(folder: Path, *, verify: bool = True) -> tuple[Manifest, Mapper]:
    """Reads what :func:`save_mapper` wrote; errors as :func:`load_switch`."""
    manifest, tensors = _load(folder, "mapper", verify=verify)
    return manifest, _restore(manifest, manifest.target_sites[0], tensors)


def save_vector(folder: Path, vectors: Mapping[Site, Tensor], manifest: Manifest) -> Manifest:
    """Writes one ``v_D`` per site, with its norm in the manifest's ``norms``; as :func:`save_switch`."""
    _expect(manifest, "vector")
    tensors = {str(site): v_D.detach().float() for site, v_D in vectors.items()}
    _check(tensors, manifest, ArtifactMismatch)
    norms = {name: float(v_D.norm()) for name, v_D in tensors.items()}
    return _save(folder, tensors, Manifest.model_validate({**manifest.model_dump(), "norms": norms}))


def load_vector(folder: Path, *, verify: bool = True) -> tuple[Manifest, dict[Site, Tensor]]:
    """Reads what :func:`save_vector` wrote, ``v_D`` per site; errors as :func:`load_switch`."""
    manifest, tensors = _load(folder, "vector", verify=verify)
    return manifest, {site: tensors[str(site)] for site in manifest.target_sites}


def save_probe(folder: Path, probe: Probe, manifest: Manifest) -> Manifest:
    """Writes the probe of the manifest's one site; its thresholds are those of the manifest; as :func:`save_switch`."""
    _expect(manifest, "probe")
    (site,) = manifest.sites
    tensors = {f"{site}.weight": probe.weight_D.detach().float(), f"{site}.bias": torch.tensor([probe.bias])}
    return _save(folder, tensors, manifest)


def load_probe(folder: Path, *, verify: bool = True) -> tuple[Manifest, dict[Site, Probe]]:
    """Reads what :func:`save_probe` wrote; errors as :func:`load_switch`."""
    manifest, tensors = _load(folder, "probe", verify=verify)
    facts, (site,) = manifest.probe, manifest.target_sites
    assert facts is not None, "a manifest of a probe says how it is read"
    weight_D, bias = tensors[f"{site}.weight"], float(tensors[f"{site}.bias"])
    return manifest, {site: Probe(weight_D, bias, facts.on, facts.off)}


def _expect(manifest: Manifest, kind: ArtifactKind) -> None:
    if manifest.kind != kind:
        raise ArtifactMismatch(f"{manifest.name!r} is a {manifest.kind}, not a {kind}")


def _flatten(mappers: Mapping[Site, Mapper]) -> dict[str, Tensor]:
    return {
        f"{site}.{name}": parameter.float()
        for site, mapper in mappers.items()
        for name, parameter in mapper.state_dict().items()
    }


def _restore(manifest: Manifest, site: Site, tensors: Mapping[str, Tensor]) -> Mapper:
    config = manifest.mapper
    if config is None:
        raise ArtifactMismatch(f"{manifest.name!r} holds no mapper")
    mapper = zero_mapper(config)
    mapper.load_state_dict({name: tensors[f"{site}.{name}"] for name in config.parameter_shapes()})
    return mapper.requires_grad_(False).eval()


def _save(folder: Path, tensors: Mapping[str, Tensor], manifest: Manifest) -> Manifest:
    _check(tensors, manifest, ArtifactMismatch)
    header = {HEADER_KEY: canonical_json(manifest, with_files=False).decode()}
    plain = {name: tensors[name].cpu().contiguous().clone() for name in sorted(tensors)}
    folder.mkdir(parents=True, exist_ok=True)
    with staged_file(folder, TENSOR_FILE) as path:
        save_file(plain, path, metadata=header)
    return seal(folder, manifest)


def _load(folder: Path, kind: ArtifactKind, *, verify: bool) -> tuple[Manifest, dict[str, Tensor]]:
    manifest = verify_files(folder) if verify else read_manifest(folder)
    _expect(manifest, kind)
    try:
        tensors = load_file(folder / TENSOR_FILE)
    except (SafetensorError, OSError) as error:
        raise ArtifactCorrupt(f"{TENSOR_FILE} of {manifest.name!r} cannot be read: import it again") from error
    _check(tensors, manifest, ArtifactCorrupt)
    return manifest, tensors


def _check(
    tensors: Mapping[str, Tensor], manifest: Manifest, error: type[ArtifactCorrupt] | type[ArtifactMismatch]
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != manifest.tensor_shapes():
        raise error(f"the tensors of {manifest.name!r} are not those its manifest describes (sites, names, shapes)")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise error(f"tensor {name} of {manifest.name!r} has to be float32 and finite")
