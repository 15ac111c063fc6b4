"""Which arithmetic is picked, what jobs compute in, and what is refused."""

import pytest
import torch

from server.engine import precision
from server.engine.precision import pick_precision, served_dtype
from server.settings import ConfigurationError
from tests.server.engine.conftest import tiny_model

NEW = {"avx512_bf16": True, "avx512_vnni": True}
OLD = {"avx2": True, "avx512_bf16": False}


def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_native():
    for native in ({"avx512_bf16": True}, {"amx_bf16": True}, {"bf16": True}):
        picked = pick_precision("auto", "cpu", native)
        assert (picked.dtype, picked.weight_format, picked.training) == (torch.bfloat16, "native", "float32")
        assert "--dtype float32" in picked.reason
    picked = pick_precision("auto", "cpu", OLD)
    assert picked.dtype is torch.float32
    assert "no native bfloat16" in picked.reason


def test_auto_on_a_gpu_is_the_checkpoints_own():
    picked = pick_precision("auto", "cuda", NEW)
    assert (picked.dtype, picked.training) == ("auto", None)
    assert "--dtype" in picked.reason


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_the_operator_names_is_taken(wanted, device):
    picked = pick_precision(wanted, device, OLD)
    assert (picked.dtype, picked.quantization, picked.reason) == (getattr(torch, wanted), None, "")


def test_int8_on_a_cpu_keeps_hidden_states_and_training_in_float32():
    picked = pick_precision("int8", "cpu", NEW)
    assert (picked.dtype, picked.weight_format, picked.training) == (torch.float32, "int8", "float32")


@pytest.mark.parametrize(
    ("wanted", "device", "says"),
    [
        ("int8", "cpu", "int8 needs a CPU with AVX-512 VNNI .* use --dtype float32"),
        ("int4", "cpu", "int4 needs a CUDA GPU: use --dtype int8"),
        ("int8", "cuda", r"bitsandbytes and accelerate: pip install 'interlock\[bitsandbytes\]'"),
        ("int4", "cuda", r"bitsandbytes and accelerate: pip install 'interlock\[bitsandbytes\]'"),
    ],
)
def test_what_this_machine_cannot_compute_is_refused(wanted, device, says, monkeypatch):
    monkeypatch.setattr(precision, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=f"^dtype: .*{says}"):
        pick_precision(wanted, device, OLD)


def test_bitsandbytes_never_looks_for_outliers_over_the_whole_batch(monkeypatch):
    monkeypatch.setattr(precision, "find_spec", lambda _name: object())
    eight, four = (pick_precision(wanted, "cuda", {}) for wanted in ("int8", "int4"))
    assert (eight.quantization.load_in_8bit, eight.quantization.llm_int8_threshold) == (True, 0.0)
    assert (four.quantization.load_in_4bit, four.quantization.bnb_4bit_quant_type) == (True, "nf4")
    assert (eight.training, four.training) == ("bfloat16", "bfloat16")


def test_a_served_dtype_has_a_name_and_jobs_never_train_in_a_quantised_one():
    loaded = tiny_model("llama")
    auto = pick_precision("auto", "cuda", {})
    assert (served_dtype(loaded.model), auto.training_dtype(loaded.model)) == ("float32", "float32")
    assert pick_precision("int8", "cpu", NEW).training_dtype(loaded.model) == "float32"
    loaded.model.is_loaded_in_4bit = True
    assert (served_dtype(loaded.model), auto.training_dtype(loaded.model)) == ("int4", "bfloat16")
    loaded.model.is_loaded_in_8bit = True
    assert served_dtype(loaded.model) == "int8"
