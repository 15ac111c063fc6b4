"""What the operator is told at the start."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from server.banner import print_banner
from server.settings import read_settings
from server.types import EngineLimits, ModelInfo

MODEL = ModelInfo("tiny", "LlamaForCausalLM", 2, 32, 256, 128, "int8", "cpu", "1" * 64)


def banner(model: ModelInfo) -> str:
    console = Console(file=StringIO(), width=200)
    print_banner(console, read_settings({"model": "m"}, {}), model, EngineLimits(4, 8, 128, 64), "http://h:1")
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("reason", ["", "because it is native; --dtype float32 is exact"])
def test_it_names_the_arithmetic_and_why_where_nobody_asked_for_it(reason: str) -> None:
    printed = banner(replace(MODEL, dtype_reason=reason))
    assert "tiny (LlamaForCausalLM, 2 layers of width 32)" in printed
    assert "cpu, int8" + (f" ({reason})" if reason else " ") in printed
