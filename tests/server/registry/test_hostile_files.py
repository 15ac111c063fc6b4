"""Uploads that lie about themselves: headers with other shapes, offsets and lengths than their bytes."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from mappers.errors import ArtifactError, DataError
from mappers.manifest import ModelBinding
from server.registry.imports import import_upload

TARGET = ModelBinding(model="tiny", config_digest="0" * 64, width=4)
CREATED = "2026-01-02T03:04:05+00:00"
MOST_MEMORY = 8 << 20
TAKEN = "taken"
PLAIN = save({"direction.2": np.ones(4, np.float32), "direction.3": np.ones(4, np.float32)})


def parts(file: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def joined(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


HEADER, DATA = parts(PLAIN)
TEXT = json.dumps(HEADER).encode()
FIELDS: dict[str, list[Any]] = {
    "dtype": ["F64", "BF16", "F8_E4M3", "I64", "BOOL", "f32", "", None, 5, "F32\0", "F4", "C64"],
    "shape": [[], [0], [5], [3], [2, 2], [2**63], [2**64], [-4], [4.0], ["4"], None, 4, [1] * 100_000, [2**32, 2**32]],
    "data_offsets": [[0, 0], [16, 0], [0, 17], [1, 17], [-16, 0], [0, 2**63], [2**64, 2**64], [0], [0, 16, 32], None],
}
WHOLE: dict[str, bytes] = {
    "not an object": b"[1, 2]",
    "no JSON": b"{" + b"nonsense" * 10,
    "an object 100,000 deep": b'{"a":' * 100_000,
    "a list 100,000 deep": b'{"a":' + b"[" * 100_000,
    "no tensors": b"{}",
    "metadata that are no text": json.dumps(HEADER | {"__metadata__": {"interlock": 5}}).encode(),
    "metadata that are no object": json.dumps(HEADER | {"__metadata__": ["interlock"]}).encode(),
    "a manifest that is none": json.dumps(HEADER | {"__metadata__": {"interlock": "{}"}}).encode(),
    "a manifest 100,000 deep": json.dumps(HEADER | {"__metadata__": {"interlock": '{"a":' * 100_000}}).encode(),
    "a manifest with a huge number": json.dumps(
        HEADER | {"__metadata__": {"interlock": '{"format": ' + "9" * 5000 + "}"}}
    ).encode(),
    "bytes that are no UTF-8": TEXT.replace(b"direction.2", b"direction.\xff"),
    "a lone surrogate": TEXT.replace(b"direction.2", b"direction.\\ud800"),
    "a NUL in a name": TEXT.replace(b"direction.2", b"direction.2\\u0000"),
    "a path as a name": TEXT.replace(b"direction.2", b"../../etc/passwd"),
    "one tensor twice": b'{"direction.2":' + json.dumps(HEADER["direction.2"]).encode() + b"," + TEXT[1:],
    "10,000 tensors": json.dumps({f"direction.{i}": HEADER["direction.2"] for i in range(10_000)}).encode(),
}
LENGTHS = [0, 1, len(PLAIN), 99_999_999, 100_000_000, 2**31, 2**32, 2**63, 2**64 - 1]


def bent() -> Iterator[tuple[str, bytes]]:
    for field, values in FIELDS.items():
        for value in values:
            header = HEADER | {"direction.2": HEADER["direction.2"] | {field: value}}
            yield f"{field} {str(value)[:40]}", joined(json.dumps(header).encode(), DATA)
        without = {name: entry for name, entry in HEADER["direction.2"].items() if name != field}
        yield f"no {field}", joined(json.dumps(HEADER | {"direction.2": without}).encode(), DATA)
    for name, header_bytes in WHOLE.items():
        yield name, joined(header_bytes, DATA)
    for length in LENGTHS:
        yield f"header of {length} bytes", joined(PLAIN[8:-32], DATA, length)
    for cut in range(0, len(PLAIN), 7):
        yield f"cut at {cut}", PLAIN[:cut]


def gguf_key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def bent_gguf() -> Iterator[tuple[str, bytes]]:
    """Every 4-byte word of a good control vector replaced by counts and lengths that are far too large."""
    architecture = gguf_key(b"general.architecture", 8, struct.pack("<Q", 13) + b"controlvector")
    names = gguf_key(b"names", 9, struct.pack("<IQQ", 8, 1, 1) + b"a")
    tensor = struct.pack("<Q", 11) + b"direction.3" + struct.pack("<IQIQ", 1, 4, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + architecture + names + tensor
    good = head + b"\0" * (-len(head) % 32) + np.ones(4, "<f4").tobytes()
    for place in range(4, len(head), 3):
        for word in (2**31 - 1, 2**32 - 1, 65_536, 0):
            yield f"{word} at {place}", good[:place] + struct.pack("<I", word) + good[place + 4 :]


@pytest.fixture
def outcome(tmp_path: Path) -> Callable[[bytes], str]:
    """TAKEN or the words of the refusal; any other exception is the test's failure."""

    def run(content: bytes) -> str:
        (tmp_path / "upload").write_bytes(content)
        folder = tmp_path / "made"
        folder.mkdir()
        try:
            import_upload(tmp_path / "upload", folder, name="thing", created_at=CREATED, target=TARGET)
        except (DataError, ArtifactError) as error:
            return error.message
        finally:
            shutil.rmtree(folder)
        return TAKEN

    return run


def test_the_file_that_is_bent_is_good(outcome: Callable[[bytes], str]) -> None:
    assert outcome(PLAIN) == outcome(joined(json.dumps(HEADER).encode(), DATA)) == TAKEN


@pytest.mark.parametrize("files", [bent, bent_gguf])
def test_nothing_bent_is_taken_for_more_than_it_is(
    outcome: Callable[[bytes], str], files: Callable[[], Iterator[tuple[str, bytes]]], tmp_path: Path
) -> None:
    """Refused without another exception and without memory for what a length promises."""
    outcomes, costly = {}, []
    tracemalloc.start()
    try:
        for name, content in files():
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            outcomes[name] = outcome(content)
            if tracemalloc.get_traced_memory()[1] - before > MOST_MEMORY:
                costly.append(name)
    finally:
        tracemalloc.stop()
    assert costly == []
    assert [name for name, words in outcomes.items() if str(tmp_path) in words] == []
    assert list(outcomes.values()).count(TAKEN) < len(outcomes) / 2
    if files is bent:
        assert [name for name, words in outcomes.items() if words == TAKEN] == []
