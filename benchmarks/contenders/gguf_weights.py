"""Writes a Llama folder of float32 weights as GGUF, which llama.cpp reads. Without a tokenizer: only ids are sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def gguf_file(folder: Path, kind: str) -> Path:
    """``model-<kind>.gguf`` beside the weights, written unless it is there. Matrices get ``kind``, the rest float32."""
    file = folder / f"model-{kind}.gguf"
    if not file.exists():
        unfinished = file.with_suffix(".part")
        _write(folder, unfinished, kind)
        unfinished.replace(file)
    return file


def _write(folder: Path, file: Path, kind: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    quantization, file_type = KINDS[kind]
    writer = GGUFWriter(file, "llama")
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for name, weights in _tensors(folder):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights = _interleaved(weights, heads if "q_proj" in name else config["num_key_value_heads"])
        wanted = quantization if weights.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(_renamed(name), gguf.quants.quantize(weights, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and values of every tensor; the format is a length, a JSON header and the data."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        if tensor["dtype"] != "F32":
            raise ValueError(f"{name} is {tensor['dtype']}, only F32 is read here")
        first, end = tensor["data_offsets"]
        yield name, np.frombuffer(data[start + first : start + end], np.float32).reshape(tensor["shape"])


def _renamed(name: str) -> str:
    module = name.removesuffix(".weight")
    if module in NAMES:
        return f"{NAMES[module]}.weight"
    block, _, inner = module.removeprefix("model.layers.").partition(".")
    return f"blk.{block}.{BLOCK_NAMES[inner]}.weight"


def _interleaved(weights: NDArray[Any], heads: int) -> NDArray[Any]:
    """transformers rotates the halves of a head, llama.cpp neighbours: the same rotation of rows in another order."""
    return weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)
