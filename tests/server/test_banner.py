"""What the operator is told at the start."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from server.banner import Access, print_banner
from server.settings import read_settings
from server.types import EngineLimits, MemoryPlan, ModelInfo

MODEL = ModelInfo("tiny", "LlamaForCausalLM", 2, 32, 256, 128, "int8", "cpu", "1" * 64)


LIMITS = EngineLimits(4, 8, 128, 64, MemoryPlan(2**20, 2**30, 2**20))


def banner(model: ModelInfo, access: Access = Access(open=True)) -> str:
    console = Console(file=StringIO(), width=200)
    print_banner(console, read_settings({"model": "m"}, {}), model, LIMITS, "http://h:1", access)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("reason", ["", "because it is native; --dtype float32 is exact"])
def test_it_names_the_arithmetic_and_why_where_nobody_asked_for_it(reason: str) -> None:
    printed = banner(replace(MODEL, dtype_reason=reason))
    assert "tiny (LlamaForCausalLM, 2 layers of width 32)" in printed
    assert "cpu, int8" + (f" ({reason})" if reason else " ") in printed


def test_it_says_who_is_let_in_and_what_is_on() -> None:
    assert "open, from this machine only" in banner(MODEL)
    printed = banner(MODEL, Access(open=False, default="guarded"))
    assert "with an API key" in printed
    assert "guarded" in printed
