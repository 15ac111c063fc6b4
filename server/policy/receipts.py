"""Signed receipts: what was done to an answer, so that its caller can show later what was on.

What is signed is a text (canonical JSON), kept and sent back as it is: no reader has to write numbers as we do.
"""

from __future__ import annotations

import hmac
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

ALGORITHM: Literal["HMAC-SHA256"] = "HMAC-SHA256"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Signature:
    """``value`` is the HMAC-SHA256 of ``payload`` in UTF-8, in hex; ``key_id`` tells keys apart, not what they are."""

    key_id: str
    payload: str
    value: str


class ReceiptSigner:
    """Signs and checks with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.key_id = sha256(b"interlock receipt key\0" + key).hexdigest()[:16]

    def sign(self, receipt: Mapping[str, Any]) -> Signature:
        """The receipt as canonical JSON, signed."""
        payload = json.dumps(receipt, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return Signature(self.key_id, payload, self._value(payload))

    def problem(self, signature: Signature) -> str | None:
        """Why this is no signature of this server's key, None where it is one."""
        if signature.key_id != self.key_id:
            return f"it was signed with the key {signature.key_id}, this server has {self.key_id}"
        if not hmac.compare_digest(self._value(signature.payload).encode(), signature.value.encode()):
            return "payload and signature do not belong together"
        return None

    def _value(self, payload: str) -> str:
        return hmac.new(self._key, payload.encode(), sha256).hexdigest()


def kept_key(file: Path) -> bytes:
    """The key in ``file``, made of fresh random bits and readable by its owner only where there is none.

    Raises ValueError for a file that holds no key.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        content = file.read_text("ascii", errors="replace")
        if re.fullmatch(f"[0-9a-f]{{{2 * _KEY_BYTES}}}", content) is None:
            raise ValueError(f"{file.name} must hold {_KEY_BYTES} bytes in hex") from None
        return bytes.fromhex(content)
    key = os.urandom(_KEY_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as sink:
        sink.write(key.hex())
        sink.flush()
        os.fsync(descriptor)
    return key
