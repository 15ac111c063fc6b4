"""A real server in a process of its own: start, answer, drain, exit; and what it refuses to start with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from mappers.errors import InterlockError
from mappers.loading import ModelLoadError
from server.errors import NotFound
from server.serve import pick_device, running_services
from server.settings import ConfigurationError, Settings, read_settings

SECRET_PROMPT = "zebra"


@dataclass
class Served:
    """A server process; what it prints and logs goes to files in ``folder``."""

    process: subprocess.Popen[bytes]
    folder: Path
    url: str = ""

    @property
    def printed(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def logged(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (self.folder / "err").read_text().splitlines(keepends=True) if "\n" in line
        ]

    def complete(self, **body: Any) -> httpx.Response:
        fields = {"model": "tiny", "prompt": SECRET_PROMPT, "temperature": 0, **body}
        return httpx.post(f"{self.url}/v1/completions", json=fields, timeout=60)


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--threads", "1", *arguments]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen([*command, "--data-dir", str(folder / "data")], stdout=out, stderr=err)
    served = Served(process, folder)
    try:
        served.url = _await_listening(served)
        yield served
    finally:
        process.kill()
        process.wait()


def _await_listening(served: Served) -> str:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and served.process.poll() is None:
        for record in served.logged:
            if record["event"] == "listening":
                return str(record["url"])
        time.sleep(0.05)
    raise AssertionError((served.folder / "err").read_text())


def test_it_answers_drains_and_exits_with_0(model_folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--model", str(model_folder), "--drain-s", "30") as served:
        _answer_and_drain(served)
        events = [record["event"] for record in served.logged]
    assert {"listening", "draining", "stopped"} <= set(events)
    assert SECRET_PROMPT not in served.printed + (tmp_path / "err").read_text()
    assert "tiny (LlamaForCausalLM, 2 layers of width 32)" in served.printed


def _answer_and_drain(served: Served) -> None:
    assert served.complete(max_tokens=4).json()["usage"]["completion_tokens"] == 4
    long: list[httpx.Response] = []
    request = threading.Thread(
        target=lambda: long.append(served.complete(max_tokens=400, n=4, temperature=1, ignore_eos=True))
    )
    request.start()
    while not httpx.get(f"{served.url}/v1/generations").json()["data"]:
        time.sleep(0.01)

    served.process.send_signal(signal.SIGTERM)
    while (ready := httpx.get(f"{served.url}/health/ready")).status_code == 200:
        time.sleep(0.01)
    refused = served.complete(max_tokens=1)
    request.join()

    assert (ready.status_code, refused.status_code) == (503, 503)
    assert "Retry-After" in refused.headers
    assert (long[0].status_code, long[0].json()["usage"]["completion_tokens"]) == (200, 4 * 400)
    assert served.process.wait(timeout=35) == 0


def test_stories_are_told_as_their_author_published_them(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "models" / "stories260K"
    with serving(tmp_path, "--model", str(folder), "--dtype", "float32") as served:
        answer = served.complete(model="stories260K", prompt=[1], max_tokens=256)
        assert answer.json()["choices"][0]["text"] == (folder / "greedy.txt").read_text()


def _settings(model: Path | str, data_dir: Path, **options: Any) -> Settings:
    return read_settings({"model": str(model), "data_dir": data_dir, "device": "cpu", **options}, {})


def _refusal(settings: Settings) -> InterlockError:
    with pytest.raises(InterlockError) as refused, running_services(settings, threading.Event()):
        pass
    return refused.value


def test_a_default_switch_that_is_not_there_stops_the_start(model_folder: Path, tmp_path: Path) -> None:
    refusal = _refusal(_settings(model_folder, tmp_path, switch="safe"))
    assert isinstance(refusal, NotFound)
    assert "'safe'" in refusal.message


def test_a_reference_may_not_take_the_served_models_name(model_folder: Path, tmp_path: Path) -> None:
    assert "tiny" in _refusal(_settings(model_folder, tmp_path, references=[f"tiny={model_folder}"])).message


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    refusal = _refusal(_settings(tmp_path / "none", tmp_path))
    assert isinstance(refusal, ModelLoadError)
    assert "there is no folder" in refusal.message


def test_a_database_that_is_none(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "interlock.db").write_bytes(b"no database at all, but long enough to have a header" * 100)
    refusal = _refusal(_settings(model_folder, tmp_path))
    assert isinstance(refusal, ConfigurationError)
    assert "cannot be used by this version" in refusal.message


def test_a_database_that_is_not_reached_keeps_its_password(model_folder: Path, tmp_path: Path) -> None:
    url = f"postgresql+psycopg://me:hunter2@/none?host={tmp_path}"
    refusal = _refusal(_settings(model_folder, tmp_path, database_url=url))
    assert isinstance(refusal, ConfigurationError)
    assert refusal.message.startswith("database_url: ")
    assert "hunter2" not in str(refusal)


def test_devices() -> None:
    assert pick_device("cpu") == "cpu"
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, so asking for one is right")
    assert pick_device("auto") == "cpu"
    with pytest.raises(ConfigurationError, match="no CUDA GPU"):
        pick_device("cuda")


@pytest.mark.parametrize("wanted", ["float32", "int8"])
def test_jobs_train_in_float32_whatever_is_served(model_folder: Path, tmp_path: Path, wanted: str) -> None:
    if wanted == "int8" and not torch.cpu.get_capabilities().get("avx512_vnni"):
        pytest.skip("int8 is served on CPUs with VNNI only")
    with running_services(_settings(model_folder, tmp_path, dtype=wanted), threading.Event()) as services:
        assert (services.engine.info.dtype, services.engine.info.dtype_reason) == (wanted, "")
        assert services.jobs._supervisor._config.execution.dtype == "float32"


def test_what_is_picked_is_named_with_the_way_to_change_it(model_folder: Path, tmp_path: Path) -> None:
    native = torch.cpu.get_capabilities().get("avx512_bf16")
    with running_services(_settings(model_folder, tmp_path), threading.Event()) as services:
        assert services.engine.info.dtype == ("bfloat16" if native else "float32")
        assert services.engine.info.dtype_reason
        assert services.jobs._supervisor._config.execution.dtype == "float32"


def test_services_become_not_ready(model_folder: Path, tmp_path: Path) -> None:
    draining = threading.Event()
    with running_services(_settings(model_folder, tmp_path), draining) as services:
        assert (services.not_ready(), services.engine.healthy) == (None, True)
        draining.set()
        assert services.not_ready() == "the server is shutting down"
