"""``interlock bench`` hands over to the checkout's benchmarks, or says where they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import server.cli.bench
from benchmarks.__main__ import PROGRAMS
from benchmarks.suites import SUITES
from tests.server.cli.conftest import Ran

Interlock = Callable[..., Ran]


def test_list_is_handed_over() -> None:
    command = [sys.executable, "-m", "server.cli", "bench", "--list", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert list(json.loads(ran.stdout.splitlines()[-1])["suites"]) == list(SUITES)


def test_an_unknown_suite_is_wrong_usage() -> None:
    command = [sys.executable, "-m", "server.cli", "bench", "slow"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "no suite slow; there are simultaneous" in ran.stderr


def test_every_option_is_handed_over(interlock: Interlock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    options = ["--quick", "--repeats", "7", "--threads", "1", "--models", str(tmp_path), "--out", str(tmp_path)]
    assert interlock("bench", "long", *options).code == 3
    flags = ["--repeats=7", "--threads=1", "--quick", f"--models={tmp_path}", f"--out={tmp_path}"]
    assert commands == [[sys.executable, "-m", "benchmarks", "long", *flags]]


def test_what_is_no_suite_runs_by_itself_with_options_of_its_own(
    interlock: Interlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    assert interlock("bench", "soak", "--minutes", "0.5").code == 1
    assert interlock("bench", "lag").code == 1
    assert interlock("bench", "beside", "--repeats", "3").code == 1
    module = [sys.executable, "-m", "benchmarks"]
    assert commands == [[*module, "soak", "--minutes=0.5"], [*module, "lag"], [*module, "beside", "--repeats=3"]]
    wrong = ("soak long", "long soak", "long --minutes 1", "lag --quick", "soak --repeats 2")
    for arguments in map(str.split, wrong):
        assert interlock("bench", *arguments).code == 2
    assert len(commands) == 3


def test_the_command_knows_what_the_package_runs_by_itself() -> None:
    assert list(PROGRAMS) == list(server.cli.bench.PROGRAMS)
    command = [sys.executable, "-m", "benchmarks", "soak", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--minutes" in ran.stdout


def test_without_a_checkout_the_remedy_is_named(
    interlock: Interlock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server.cli.bench, "CHECKOUT", tmp_path)
    ran = interlock("bench", "--list")
    assert ran.code == 1
    assert "from a checkout of the repository" in ran.err
