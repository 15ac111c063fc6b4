"""Signed receipts of answers: the texts are digested as they are sent, whole or in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from server.api.schemas.answers import InterlockOut, SignatureOut
from server.policy.receipts import ALGORITHM, ReceiptSigner


class Seal:
    """Digests the text of each choice and signs what was done to them.

    ``request`` holds what is known beforehand (id, model, time); ``openings`` what each choice's text begins with: the
    prompt where it is echoed.
    """

    def __init__(self, signer: ReceiptSigner, request: Mapping[str, Any], openings: Sequence[str]) -> None:
        self._signer = signer
        self._request = dict(request)
        self._digests = [sha256(opening.encode()) for opening in openings]

    def add(self, choice: int, text: str) -> None:
        """The next piece of a choice's text."""
        self._digests[choice].update(text.encode())

    def signature(self, interlock: InterlockOut) -> SignatureOut:
        """Over the request, what was done and the texts, once all of them are whole."""
        answers = [{"choice": i, "text_sha256": digest.hexdigest()} for i, digest in enumerate(self._digests)]
        signed = self._signer.sign({**self._request, **interlock, "answers": answers})
        return {"algorithm": ALGORITHM, "key_id": signed.key_id, "payload": signed.payload, "value": signed.value}
