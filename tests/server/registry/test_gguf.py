"""Control vectors: real files are read, hostile ones end in DataError at once."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from mappers.errors import DataError
from mappers.sites import Site
from server.registry.gguf import MAX_BYTES, control_vector, read_control_vector


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


ARCHITECTURE = key("general.architecture", 8, text("controlvector"))


def tensor(name: str, width: int = 4, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack("<IQIQ", 1, width, kind, offset)


def gguf(
    keys: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (tensor("direction.3"),),
    data: bytes = np.arange(4, dtype="<f4").tobytes(),
    head: bytes | None = None,
) -> bytes:
    start = head if head is not None else b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    content = start + b"".join(keys) + b"".join(tensors)
    return content + b"\0" * (-len(content) % 32) + data


@pytest.fixture
def read(tmp_path: Path):
    def run(content: bytes):
        path = tmp_path / "vector.gguf"
        path.write_bytes(content)
        return read_control_vector(path)

    return run


def test_directions_become_sites(read):
    half = np.array([1, 2, 3, 4], dtype="<f2").tobytes()
    vectors = read(
        gguf(
            tensors=(tensor("direction.0"), tensor("direction.7", kind=1, offset=32)),
            data=np.arange(4, dtype="<f4").tobytes() + b"\0" * 16 + half,
        )
    )
    assert vectors[Site(0)].tolist() == [0, 1, 2, 3]
    assert vectors[Site(7)].tolist() == [1, 2, 3, 4]
    assert vectors[Site(7)].dtype == np.float32


def test_unknown_keys_of_every_type_are_read_past(read):
    others = (
        *(key(f"k{kind}", kind, b"\0" * size) for kind, size in ((0, 1), (3, 2), (6, 4), (7, 1), (12, 8))),
        key("numbers", 9, struct.pack("<IQ", 5, 3) + b"\0" * 12),
        key("names", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
    )
    assert set(read(gguf(keys=(*others, ARCHITECTURE)))) == {Site(3)}


def test_what_is_written_is_read_back_bit_for_bit(read):
    rng = np.random.default_rng(0)
    vectors = {Site(layer): rng.standard_normal(7).astype(np.float32) for layer in (12, 0, 3)}
    content = control_vector(vectors, "llama-small")
    again = read(content)
    assert list(again) == [Site(0), Site(3), Site(12)]
    assert all(np.array_equal(again[site], vectors[site]) for site in vectors)
    assert content[:8] == b"GGUF" + struct.pack("<I", 3)
    assert control_vector(again, "llama-small") == content


def test_real_files_survive_a_round_trip(read, shared_data):
    paths = sorted((shared_data / "vectors").glob("*.gguf"))
    assert paths
    for path in paths:
        vectors = read_control_vector(path)
        again = read(control_vector(vectors, "model"))
        assert again.keys() == vectors.keys()
        assert all(np.array_equal(again[site], vectors[site]) for site in vectors)


HOSTILE = {
    "empty": b"",
    "other magic": b"GGML" + bytes(40),
    "version 1": gguf(head=b"GGUF" + struct.pack("<IQQ", 1, 1, 1)),
    "no tensors": gguf(tensors=()),
    "513 tensors": gguf(tensors=tuple(tensor(f"direction.{i}") for i in range(513))),
    "65 keys": gguf(keys=(ARCHITECTURE, *(key(f"k{i}", 0, b"\0") for i in range(64)))),
    "2**64-1 tensors": gguf(head=b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 1)),
    "2**63 keys": gguf(head=b"GGUF" + struct.pack("<IQQ", 3, 1, 2**63)),
    "array of 2**63 (hangs gguf 0.19.0)": b"GGUF"
    + struct.pack("<IQQ", 3, 1, 1)
    + key("a", 9, struct.pack("<IQ", 0, 2**63)),
    "array of 2**63 strings": gguf(keys=(key("a", 9, struct.pack("<IQ", 8, 2**63)),)),
    "array of arrays": gguf(keys=(key("a", 9, struct.pack("<IQ", 9, 1)),)),
    "string of 2**63": gguf(keys=(text("a") + struct.pack("<IQ", 8, 2**63),)),
    "unknown value type": gguf(keys=(key("a", 13, b""),)),
    "another architecture": gguf(keys=(key("general.architecture", 8, text("llama")),)),
    "no architecture": gguf(keys=()),
    "alignment 0": gguf(keys=(ARCHITECTURE, key("general.alignment", 4, struct.pack("<I", 0)))),
    "two dimensions": gguf(tensors=(text("direction.3") + struct.pack("<IQQIQ", 2, 2, 2, 0, 0),)),
    "2**32-1 dimensions": gguf(tensors=(text("direction.3") + struct.pack("<I", 2**32 - 1),)),
    "width 0": gguf(tensors=(tensor("direction.3", width=0),)),
    "width 2**63": gguf(tensors=(tensor("direction.3", width=2**63),)),
    "quantised": gguf(tensors=(tensor("direction.3", kind=8),)),
    "one value outside": gguf(tensors=(tensor("direction.3", width=5),)),
    "offset outside": gguf(tensors=(tensor("direction.3", offset=2**63),)),
    "same layer twice": gguf(tensors=(tensor("direction.3"), tensor("resid_post.3"))),
    "different widths": gguf(tensors=(tensor("direction.3"), tensor("direction.4", width=3))),
    "other name": gguf(tensors=(tensor("blk.3.weight"),)),
    "path as name": gguf(tensors=(tensor("../direction.3"),)),
    "digits of another script": gguf(tensors=(tensor("direction.٣"),)),
    "NaN": gguf(data=np.array([0, np.nan, 0, 0], dtype="<f4").tobytes()),
    "infinity": gguf(data=np.array([0, np.inf, 0, 0], dtype="<f4").tobytes()),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused(read, content):
    with pytest.raises(DataError):
        read(content)


def test_every_truncation_is_refused(read):
    content = gguf()
    for length in range(len(content)):
        with pytest.raises(DataError):
            read(content[:length])


def test_mutations_are_read_or_refused(read):
    """Whatever bytes change, the answer is a vector per layer or DataError, never another exception."""
    content = gguf(keys=(ARCHITECTURE, key("names", 9, struct.pack("<IQ", 8, 1) + text("a"))))
    chance = random.Random(5)
    outcomes = set()
    for _ in range(2000):
        mutated = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            mutated[chance.randrange(len(mutated))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        try:
            outcomes.add(len(read(bytes(mutated))))
        except DataError:
            outcomes.add("refused")
    assert outcomes == {1, "refused"}


def test_file_over_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="at most"):
        read_control_vector(path)


def test_real_control_vectors_are_read(shared_data):
    for path in sorted((shared_data / "vectors").glob("*.gguf")):
        vectors = read_control_vector(path)
        assert set(vectors) == {Site(layer) for layer in range(28)}, path.name
        assert {vector.shape for vector in vectors.values()} == {(1536,)}
        assert any(np.linalg.norm(vector) > 0 for vector in vectors.values())


def test_real_control_vectors_cut_or_bent_are_refused(shared_data, read):
    content = (shared_data / "vectors" / "refuse-pca.gguf").read_bytes()
    for length in (3, 23, 100, 1500, len(content) - 1):
        with pytest.raises(DataError):
            read(content[:length])
    with pytest.raises(DataError, match="version"):
        read(content[:4] + struct.pack("<I", 99) + content[8:])
