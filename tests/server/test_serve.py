"""A real server in a process of its own: start, answer, drain, exit; and what it refuses to start with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mappers.errors import InterlockError
from mappers.loading import ModelLoadError
from server.errors import NotFound
from server.serve import open_database, pick_device, running_services
from server.settings import ConfigurationError, Settings, read_settings

SECRET_PROMPT = "zebra"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers that reads and writes bytes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    banner: list[str]
    logged: list[str]

    def complete(self, **body: Any) -> httpx.Response:
        fields = {"model": "tiny", "prompt": SECRET_PROMPT, "temperature": 0, **body}
        return httpx.post(f"{self.url}/v1/completions", json=fields, timeout=60)


def _start(*arguments: str) -> Served:
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--threads", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    served = Served(process, "", [], [])
    for stream, lines in ((process.stdout, served.banner), (process.stderr, served.logged)):
        threading.Thread(target=lambda stream=stream, lines=lines: lines.extend(iter(stream.readline, ""))).start()
    return served


def _await_listening(served: Served, within_s: float = 90) -> str:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and served.process.poll() is None:
        for line in list(served.logged):
            if '"listening"' in line:
                return str(json.loads(line)["url"])
        time.sleep(0.05)
    raise AssertionError("".join(served.logged))


@pytest.fixture
def served(model_folder: Path, tmp_path: Path) -> Iterator[Served]:
    served = _start("--model", str(model_folder), "--data-dir", str(tmp_path / "data"), "--drain", "20")
    try:
        served.url = _await_listening(served)
        yield served
    finally:
        served.process.kill()
        served.process.wait()


def test_it_answers_drains_and_exits_with_0(served: Served) -> None:
    assert served.complete(max_tokens=4).json()["usage"]["completion_tokens"] == 4
    long: list[httpx.Response] = []
    request = threading.Thread(
        target=lambda: long.append(served.complete(max_tokens=700, n=4, temperature=1, ignore_eos=True))
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
    assert (long[0].status_code, long[0].json()["usage"]["completion_tokens"]) == (200, 4 * 700)
    assert served.process.wait(timeout=20) == 0
    _check_output(served)


def _check_output(served: Served) -> None:
    events = [json.loads(line)["event"] for line in served.logged]
    assert {"listening", "draining", "stopped"} <= set(events)
    assert not any(SECRET_PROMPT in line for line in served.logged + served.banner)
    assert "tiny (LlamaForCausalLM, 2 layers of width 32)" in "".join(served.banner)


def test_stories_are_told_as_their_author_published_them(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "models" / "stories260K"
    served = _start("--model", str(folder), "--data-dir", str(tmp_path))
    try:
        served.url = _await_listening(served)
        answer = served.complete(model="stories260K", prompt=[1], max_tokens=256)
        assert answer.json()["choices"][0]["text"] == (folder / "greedy.txt").read_text()
    finally:
        served.process.terminate()
        assert served.process.wait(timeout=20) == 0


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


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "interlock.db").write_bytes(b"no database at all, but long enough to have a header" * 100)
    with pytest.raises(ConfigurationError, match="cannot be used by this version"):
        open_database(tmp_path / "interlock.db")


def test_devices() -> None:
    assert pick_device("cpu") == "cpu"
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, so asking for one is right")
    assert pick_device("auto") == "cpu"
    with pytest.raises(ConfigurationError, match="no CUDA GPU"):
        pick_device("cuda")


def test_services_become_not_ready(model_folder: Path, tmp_path: Path) -> None:
    draining = threading.Event()
    with running_services(_settings(model_folder, tmp_path), draining) as services:
        assert (services.not_ready(), services.engine.healthy) == (None, True)
        draining.set()
        assert services.not_ready() == "the server is shutting down"
