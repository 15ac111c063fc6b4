"""A bounded reader and a writer of GGUF control vectors, and of nothing else that GGUF can hold.

Every count and length is checked against a limit and against what is left of the file before anything is allocated or
looped over; format after the ``ggml`` project's ``docs/gguf.md``, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mappers.errors import DataError
from mappers.sites import Site

MAX_BYTES = 64 << 20
MAX_KEYS = 64
MAX_TENSORS = 512
MAGIC = b"GGUF"

_MAX_NAME = 256
_MAX_WIDTH = 65_536
_MAX_STRINGS = 65_536
_ALIGNMENT = 32
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_F32 = 0
_SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TENSOR_DTYPES: dict[int, Literal["<f4", "<f2"]] = {0: "<f4", 1: "<f2"}


def read_control_vector(path: Path) -> dict[Site, NDArray[np.float32]]:
    """The vectors of a control vector file: tensor ``direction.N`` is the vector of ``Site(N)``, shape ``(width,)``.

    Raises DataError for anything that is not such a file: over 64 MiB, 64 keys or 512 tensors, tensors that are not
    1-D F32 or F16, that lie outside the file, differ in width or are not finite.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"the GGUF file has {size} bytes; a control vector has at most {MAX_BYTES}")
    cursor = _Cursor(path.read_bytes())
    if cursor.take(4) != MAGIC:
        raise DataError("this is not a GGUF file: its first four bytes are not 'GGUF'")
    version, tensors, keys = cursor.unpack("<IQQ")
    if version not in (2, 3):
        raise DataError(f"GGUF version {version} is not read: write version 3, little-endian")
    if keys > MAX_KEYS or not 1 <= tensors <= MAX_TENSORS:
        raise DataError(
            f"a control vector has at most {MAX_KEYS} keys and 1 to {MAX_TENSORS} tensors, "
            f"this file says {keys} and {tensors}"
        )
    alignment = _read_keys(cursor, keys)
    infos = [_read_tensor_info(cursor) for _ in range(tensors)]
    data_start = -(-cursor.offset // alignment) * alignment
    vectors = {info.site: info.values(cursor.data, data_start) for info in infos}
    if len(vectors) != tensors:
        raise DataError("the GGUF file names a tensor twice")
    if len(widths := {len(vector) for vector in vectors.values()}) != 1:
        raise DataError(f"the vectors of the GGUF file differ in width: {', '.join(map(str, sorted(widths)))}")
    return vectors


def control_vector(vectors: Mapping[Site, NDArray[np.float32]], hint: str) -> bytes:
    """The vectors as a file of version 3: F32 tensors ``direction.N``, lowest layer first.

    ``hint`` names the model they are for (``controlvector.model_hint``). llama.cpp counts layers as we
    do, but refuses files with a vector at layer 0.
    """
    keys = [
        _text("general.architecture") + struct.pack("<I", _STRING) + _text("controlvector"),
        _text("controlvector.model_hint") + struct.pack("<I", _STRING) + _text(hint),
        _text("controlvector.layer_count") + struct.pack("<II", _UINT32, len(vectors)),
    ]
    infos, data = b"", b""
    for site in sorted(vectors):
        infos += _text(f"direction.{site.layer}") + struct.pack("<IQIQ", 1, len(vectors[site]), _F32, len(data))
        data += _aligned(vectors[site].astype("<f4").tobytes())
    head = MAGIC + struct.pack("<IQQ", 3, len(vectors), len(keys)) + b"".join(keys) + infos
    return _aligned(head) + data


def _text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def _aligned(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % _ALIGNMENT)


class _Cursor:
    """Reads on through bytes; raises DataError instead of reading past the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.offset:
            raise DataError(f"the GGUF file ends early: {count} bytes expected at byte {self.offset}")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        (length,) = self.unpack("<Q")
        return self.take(length).decode("utf-8", errors="replace")

    def name(self) -> str:
        text = self.text()
        if len(text) > _MAX_NAME:
            raise DataError(f"the GGUF file has a name of {len(text)} characters; at most {_MAX_NAME} are read")
        return text


def _read_keys(cursor: _Cursor, count: int) -> int:
    """Reads past all keys and values; checks that this is a control vector and returns the tensors' alignment."""
    architecture, alignment = None, _ALIGNMENT
    for _ in range(count):
        key = cursor.name()
        (kind,) = cursor.unpack("<I")
        if key == "general.architecture" and kind == _STRING:
            architecture = cursor.text()
        elif key == "general.alignment" and kind == _UINT32:
            (alignment,) = cursor.unpack("<I")
        else:
            _skip_value(cursor, kind)
    if architecture != "controlvector":
        raise DataError(f"general.architecture of the GGUF file is {str(architecture)[:60]!r}, not 'controlvector'")
    if not 1 <= alignment <= 4096:
        raise DataError(f"general.alignment of the GGUF file is {alignment}; 1 to 4096 are read")
    return alignment


def _skip_value(cursor: _Cursor, kind: int) -> None:
    if kind in _SCALAR_SIZES:
        cursor.take(_SCALAR_SIZES[kind])
    elif kind == _STRING:
        cursor.text()
    elif kind == _ARRAY:
        element, length = cursor.unpack("<IQ")
        if element in _SCALAR_SIZES:
            cursor.take(_SCALAR_SIZES[element] * length)
        elif element == _STRING and length <= _MAX_STRINGS:
            for _ in range(length):
                cursor.text()
        else:
            raise DataError(f"the GGUF file has an array of {length} values of type {element}, which is not read")
    else:
        raise DataError(f"the GGUF file has a value of unknown type {kind}")


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    site: Site
    width: int
    dtype: Literal["<f4", "<f2"]
    offset: int

    def values(self, data: bytes, data_start: int) -> NDArray[np.float32]:
        start = data_start + self.offset
        if start + self.width * np.dtype(self.dtype).itemsize > len(data):
            raise DataError(f"the vector of {self.site} lies outside the GGUF file")
        vector = np.frombuffer(data, self.dtype, self.width, start).astype(np.float32)
        if not np.isfinite(vector).all():
            raise DataError(f"the vector of {self.site} holds NaN or infinite values")
        return vector


def _read_tensor_info(cursor: _Cursor) -> _TensorInfo:
    name = cursor.name()
    (dimensions,) = cursor.unpack("<I")
    if dimensions != 1:
        raise DataError(f"tensor {name[:60]!r} of the GGUF file has {dimensions} dimensions; 1 is read")
    width, kind, offset = cursor.unpack("<QIQ")
    if not 1 <= width <= _MAX_WIDTH:
        raise DataError(f"tensor {name[:60]!r} of the GGUF file has {width} values; 1 to {_MAX_WIDTH} are read")
    if kind not in _TENSOR_DTYPES:
        raise DataError(f"tensor {name[:60]!r} of the GGUF file has type {kind}; F32 (0) and F16 (1) are read")
    return _TensorInfo(parse_direction(name), width, _TENSOR_DTYPES[kind], offset)


def parse_direction(name: str) -> Site:
    """``direction.N`` or ``resid_post.N`` as a site; raises DataError for another name."""
    head, _, layer = name.rpartition(".")
    if head not in ("direction", "resid_post") or not (layer.isascii() and layer.isdecimal()) or len(layer) > 4:
        raise DataError(f"tensor {name[:60]!r} is not named 'direction.<layer>' or 'resid_post.<layer>'")
    return Site(int(layer))
