"""Tokenizers of every kind in use, text that is hard on them, and what a tokenizer's pieces really say."""

from __future__ import annotations

import re
from typing import Any, Literal
from unicodedata import normalize

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "<end>", "<user>", "<bot>"]
LINES = [
    "What is the capital of Averon?\r\n",
    "the quick brown fox jumps over the lazy dog, user",
    "naïve café e\u0301 — 12 + 34 = 46",
    "👩\u200d👩\u200d👧 🙂🙂 ! 🇩🇪 \u05e9\u05dc\u05d5\u05dd  \u202ea",
] * 8
TAGGED = (
    "{% for m in messages %}{{ ('<user>' if m.role == 'user' else '<bot>') + '\n' + m.content + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<bot>\n' }}{% endif %}"
)
TRIMMED = (
    "{{ '<s>' }}{% for m in messages %}"
    "{{ m.role + ': ' + (m.content | trim if m.role == 'user' else m.content) + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
_NORMAL_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]

# fmt: off
PIECES = [
    "a", "e", "i", "the", "user", "<user>", "<end>", "assistant:", "\n", "\r\n", "\t", "\u00a0", "\u2581", "\x00",
    "\ufe0f", "\u200d", "\U0001f642", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "e\u0301", "a\u0315\u0300",
    "\u0301", "\ufb01", "\ufdfa", "\u2460", "\u212b", "\uac01", "\u1100\u1161\u11a8", "\u0130", "\u00df",
    "\U0001f1e9\U0001f1ea", "\u202e", "\u05e9\u05dc\u05d5\u05dd", "\u0644\u0627", "\U000e0001", "\ue0000\ue001",
    "\ufeff",
]
# fmt: on
TEXTS = st.one_of(
    st.lists(st.sampled_from([*PIECES, " ", "  ", "z" + "\u0300\u0301" * 30]), max_size=12).map("".join),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
)


def _byte_level(trim: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not trim)
    if trim:
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), _bos()])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet))


def _sentencepiece(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = _bos()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL + BYTE_TOKENS))


def _bos() -> Any:
    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    trainer.show_progress = False
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def build() -> dict[str, Any]:
    """Byte-level with and without trimmed offsets, SentencePiece of three families; templates differ too."""
    llama = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    nfkc = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    built = {
        "byte_level": (_byte_level(trim=False), TAGGED),
        "trimmed": (_byte_level(trim=True), TRIMMED),
        "llama": (_sentencepiece(llama, None), TAGGED),
        "gemma": (_sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="never")), TRIMMED),
        "nfkc": (_sentencepiece(nfkc, pre_tokenizers.Metaspace(prepend_scheme="always")), TAGGED),
        "nfc": (_sentencepiece(normalizers.NFC(), pre_tokenizers.Metaspace(prepend_scheme="first")), TRIMMED),
    }
    return {
        name: PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            name_or_path=name,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="<end>",
            additional_special_tokens=["<user>", "<bot>"],
            chat_template=template,
            clean_up_tokenization_spaces=False,
        )
        for name, (tokenizer, template) in built.items()
    }


def said(tokenizer: Any, ids: tuple[int, ...]) -> bytes:
    """The bytes that tokens stand for, piece by piece, without BOS and spaces (some tokenizers add those)."""
    backend = tokenizer.backend_tokenizer
    found = b""
    for token in ids:
        piece = backend.id_to_token(token)
        if piece in SPECIAL:
            found += b"" if piece == "<s>" else piece.encode()
        elif is_byte_level(tokenizer):
            found += bytes(_BYTES[character] for character in piece)
        elif piece in BYTE_TOKENS:
            found += bytes([int(piece[3:5], 16)])
        else:
            found += piece.replace("\u2581", " ").encode()
    return found.replace(b" ", b"")


def as_read(tokenizer: Any, text: str) -> bytes:
    """What is to be read of a text in the tokenizer's normal form, special tokens as they are, no BOS, no spaces."""
    parts = [
        part if part in SPECIAL else _normal(tokenizer, part)
        for part in re.split(f"({'|'.join(SPECIAL)})", text.replace("<s>", ""))
    ]
    found = "".join(parts)
    return (found if is_byte_level(tokenizer) else found.replace("\u2581", " ")).replace(" ", "").encode()


def _normal(tokenizer: Any, text: str) -> str:
    form = _NORMAL_FORMS.get(tokenizer.name_or_path)
    return normalize(form, text) if form else text


def is_byte_level(tokenizer: Any) -> bool:
    """Whether pieces are written in the byte alphabet of GPT-2."""
    return isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()
