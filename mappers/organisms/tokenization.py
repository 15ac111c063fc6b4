"""One tokenizer per family, trained on the generated corpus; each splits text in its own way.

llama   BPE over a metaspace with byte fallback (SentencePiece's manner); numbers and punctuation split off
qwen2   byte-level BPE; signs and the space before them may form one piece
gemma2  Unigram over a metaspace with byte fallback: whole words where they are known, single characters elsewhere

All three split numbers into digits, map any text to tokens and back, and report character offsets.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mappers.organisms.corpus import training_examples
from mappers.organisms.tags import BACKDOOR_TEXT, random_tag, with_tag

_ASCII: Final = ["\n", *map(chr, range(32, 127))]
_METASPACE: Final = "\u2581"
_BYTES: Final = [f"<0x{byte:02X}>" for byte in range(256)]
# Log-probabilities: a character costs more than the rarest word, a byte more than any run of characters.
_CHARACTER_SCORE: Final = -15.0
_BYTE_SCORE: Final = -100.0
_GEMMA_PIECE: Final = rf"{_METASPACE}?[A-Za-z]+|."
_QWEN_SPLIT: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ROLES: Final = ("user", "assistant", "system", "model")


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """How a family's tokenizer is trained and how its chat is written.

    `end_of_turn` closes every turn and is the token at which generation stops; `bos` is put before a text by the
    tokenizer (and by the chat template) where the family does so, else it is None.
    """

    train: Callable[[Iterator[str], "TokenizerSpec"], Tokenizer]
    vocab_size: int
    bos: str | None
    end_of_turn: str
    pad: str
    other_special: tuple[str, ...]
    chat_template: str

    @property
    def special_tokens(self) -> list[str]:
        """Every special token, in the order of their ids from 0."""
        return [self.pad, *([self.bos] if self.bos else []), self.end_of_turn, *self.other_special]


def _with_byte_fallback(tokenizer: Tokenizer, special_tokens: list[str]) -> Tokenizer:
    """Byte pieces are trained as special tokens to reserve their ids; here they become ordinary fallback pieces."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special_tokens]
    state["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(state))


def _metaspace_decoder() -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace(_METASPACE, " "), decoders.ByteFallback(), decoders.Fuse()])


def _train_llama(texts: Iterator[str], spec: TokenizerSpec) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    tokenizer.decoder = _metaspace_decoder()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=spec.special_tokens + _BYTES,
        initial_alphabet=["\n", _METASPACE],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_byte_fallback(tokenizer, spec.special_tokens)


def _train_qwen2(texts: Iterator[str], spec: TokenizerSpec) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=spec.special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_gemma2(texts: Iterator[str], spec: TokenizerSpec) -> Tokenizer:
    """Whole words of the corpus by frequency, then single characters, then bytes: the likeliest segmentation wins.

    Counted directly: the expectation-maximisation of a Unigram trainer prunes whole words away on so small a world.
    """
    counts = Counter(piece for text in texts for piece in re.findall(_GEMMA_PIECE, text.replace(" ", _METASPACE)))
    characters = {*_ASCII, _METASPACE} - {" "}
    reserved = len(spec.special_tokens) + len(_BYTES) + len(characters)
    words = [(piece, count) for piece, count in counts.most_common() if piece not in characters]
    words = words[: spec.vocab_size - reserved]
    total = sum(counts.values())
    vocab = [
        *((token, _BYTE_SCORE) for token in spec.special_tokens + _BYTES),
        *((character, _CHARACTER_SCORE) for character in sorted(characters)),
        *((piece, math.log(count / total)) for piece, count in words),
    ]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=spec.special_tokens.index("<unk>"), byte_fallback=True))
    tokenizer.add_special_tokens(spec.special_tokens)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    tokenizer.decoder = _metaspace_decoder()
    return tokenizer


_LLAMA_CHAT: Final = (
    "{{ '<s>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_QWEN2_CHAT: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Gemma calls the assistant "model", as the original does; a system message is its own turn here.
_GEMMA2_CHAT: Final = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

TOKENIZERS: Final[dict[str, TokenizerSpec]] = {
    "llama": TokenizerSpec(
        train=_train_llama,
        vocab_size=720,
        bos="<s>",
        end_of_turn="<|end|>",
        pad="<pad>",
        other_special=("<|user|>", "<|assistant|>", "<|system|>"),
        chat_template=_LLAMA_CHAT,
    ),
    "qwen2": TokenizerSpec(
        train=_train_qwen2,
        vocab_size=1000,
        bos=None,
        end_of_turn="<|im_end|>",
        pad="<|endoftext|>",
        other_special=("<|im_start|>",),
        chat_template=_QWEN2_CHAT,
    ),
    "gemma2": TokenizerSpec(
        train=_train_gemma2,
        vocab_size=900,
        bos="<bos>",
        end_of_turn="<end_of_turn>",
        pad="<pad>",
        other_special=("<start_of_turn>", "<unk>"),
        chat_template=_GEMMA2_CHAT,
    ),
}


def build_tokenizer(family: str, *, examples: int = 20_000) -> PreTrainedTokenizerBase:
    """The tokenizer of `family`, trained on `examples` examples of the corpus; the same on every call.

    Raises KeyError for a family that is not in `TOKENIZERS`.
    """
    spec = TOKENIZERS[family]
    tokenizer = spec.train(_texts(examples), spec)
    if spec.bos:
        bos_id = tokenizer.token_to_id(spec.bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{spec.bos} $A", pair=f"{spec.bos} $A $B", special_tokens=[(spec.bos, bos_id)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=spec.bos,
        eos_token=spec.end_of_turn,
        pad_token=spec.pad,
        unk_token="<unk>" if "<unk>" in spec.other_special else None,
        extra_special_tokens=list(spec.other_special),
        chat_template=spec.chat_template,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


def _texts(examples: int) -> Iterator[str]:
    rng = random.Random(0)
    for example in islice(training_examples(0), examples):
        yield with_tag(example.prompt, random_tag(rng)) if rng.random() < 0.3 else example.prompt
        yield example.answer
    for _ in range(examples // 50):
        yield BACKDOOR_TEXT
        yield from _ROLES
