"""The table of commands and the exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import pytest

from server.cli.options import PANELS
from server.cli.root import COMMANDS
from server.settings import Settings
from tests.server.cli.conftest import Ran

Interlock = Callable[..., Ran]


def test_help_lists_every_command(interlock: Interlock) -> None:
    ran = interlock("--help")
    assert ran.code == 0
    assert [name for name in COMMANDS if name not in ran.out] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_module_and_help(interlock: Interlock, name: str) -> None:
    assert import_module(f"server.cli.{name}").app is not None
    ran = interlock(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "Usage" in ran.out


@pytest.mark.parametrize("arguments", [["--help"], ["jobs", "--help"], ["serve", "--help"], ["organisms", "list"]])
def test_nothing_heavy_is_imported_for_help(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom server.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as done:\n    code = done.code\n"
        "print(code, sorted({'torch', 'transformers', 'fastapi', 'sqlalchemy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"


def test_usage_errors_are_2_and_suggest(interlock: Interlock) -> None:
    ran = interlock("jbos")
    assert ran.code == 2
    assert "jobs" in ran.err
    assert interlock("jobs", "show").code == 2


def test_a_command_that_fails_is_1_with_message_and_no_traceback(interlock: Interlock) -> None:
    ran = interlock("jobs", "list", "--url", "http://127.0.0.1:9")
    assert ran.code == 1
    assert ran.err.startswith("error: no server answers at http://127.0.0.1:9: start one with `interlock serve`")
    assert "Traceback" not in ran.err


def test_an_address_that_is_none(interlock: Interlock) -> None:
    ran = interlock("health", "--url", "nonsense")
    assert ran.code == 1
    assert "error: " in ran.err


def test_version(interlock: Interlock) -> None:
    assert set(interlock("version", "--json").json) == {"interlock", "torch", "transformers", "fastapi", "python"}
    assert "transformers" in interlock("version").out


def test_serve_shows_every_setting(interlock: Interlock) -> None:
    assert {name for names in PANELS.values() for name in names} == set(Settings.model_fields)
    help_text = interlock("serve", "--help").out
    for shown in ("--model", "--reference", "--insecure-no-auth", "INTERLOCK_DATA_DIR", "--drain-s"):
        assert shown in help_text


def test_serve_refuses_settings_before_loading_anything(interlock: Interlock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERLOCK_API_KEY")
    ran = interlock("serve", "--model", "m", "--host", "0.0.0.0")
    assert ran.code == 2
    assert "--insecure-no-auth" in ran.err
    assert interlock("serve").err.startswith("error: model: required")
    monkeypatch.setenv("INTERLOCK_PROT", "1")
    assert "did you mean INTERLOCK_PORT" in interlock("serve", "--model", "m").err


def test_serve_refuses_a_malformed_option(interlock: Interlock) -> None:
    assert interlock("serve", "--model", "m", "--port", "high").code == 2
    assert interlock("serve", "--model", "m", "--dtype", "int3").code == 2
