from __future__ import annotations

import json
import stat
from dataclasses import replace

import pytest

from server.policy.receipts import ReceiptSigner, kept_key

RECEIPT = {"id": "chatcmpl-1", "strength": 1.0, "text": "grüß"}


def test_a_signature_holds_for_what_was_signed_only():
    signer = ReceiptSigner(b"k" * 32)
    signed = signer.sign(RECEIPT)
    assert json.loads(signed.payload) == RECEIPT
    assert signer.problem(signed) is None
    for changed in (
        replace(signed, payload=signed.payload.replace("1.0", "0.0")),
        replace(signed, payload=signed.payload + " "),
        replace(signed, value=signed.value.upper()),
        replace(signed, value=""),
        replace(signed, value="é" * 64),
    ):
        assert signer.problem(changed) == "payload and signature do not belong together"


def test_another_key_says_so():
    signed = ReceiptSigner(b"k" * 32).sign(RECEIPT)
    other = ReceiptSigner(b"l" * 32)
    assert other.key_id in other.problem(signed)
    assert other.problem(replace(signed, key_id=other.key_id)) is not None


def test_equal_receipts_have_equal_payloads():
    signer = ReceiptSigner(b"k" * 32)
    assert signer.sign({"a": 1, "b": 2}) == signer.sign({"b": 2, "a": 1})


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path):
    file = tmp_path / "receipt.key"
    key = kept_key(file)
    assert len(key) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kept_key(file) == key
    assert kept_key(tmp_path / "other.key") != key


@pytest.mark.parametrize("content", ["", "zz", "ab" * 31])
def test_a_file_that_holds_no_key_is_refused(tmp_path, content):
    file = tmp_path / "receipt.key"
    file.write_text(content)
    with pytest.raises(ValueError, match="32 bytes in hex"):
        kept_key(file)
