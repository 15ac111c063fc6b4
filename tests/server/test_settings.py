"""Precedence, refusals and the texts of refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import ConfigurationError, Settings, is_loopback, plain_environment, read_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("INTERLOCK_")]:
        monkeypatch.delenv(name)


def toml(folder: Path, text: str) -> Path:
    path = folder / "interlock.toml"
    path.write_text(text)
    return path


def test_option_beats_variable_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toml(tmp_path, 'model = "from-file"\nport = 1\nmax_batch = 1\nthreads = 1\n')
    monkeypatch.setenv("INTERLOCK_PORT", "2")
    monkeypatch.setenv("INTERLOCK_MAX_BATCH", "2")
    settings = read_settings({"config": config, "max_batch": 3}, {})
    assert (settings.model, settings.max_batch, settings.port, settings.threads) == ("from-file", 3, 2, 1)
    assert settings.max_waiting == 128


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    config = toml(tmp_path, 'model = "m"\n')
    assert read_settings({}, {"INTERLOCK_CONFIG": str(config)}).model == "m"


def test_references_from_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"base": "/models/base", "small": "org/small"}
    config = toml(tmp_path, '[references]\nbase = "/models/base"\nsmall = "org/small"\n')
    assert read_settings({"model": "m", "config": config}, {}).references == expected
    options = ["base=/models/base", "small=org/small"]
    assert read_settings({"model": "m", "references": options}, {}).references == expected
    monkeypatch.setenv("INTERLOCK_REFERENCES", "base=/models/base, small=org/small")
    assert read_settings({"model": "m"}, {}).references == expected


@pytest.mark.parametrize("item", ["base", "=x", "base=", "bad name=x"])
def test_a_malformed_reference_is_refused(item: str) -> None:
    with pytest.raises(ConfigurationError, match="references"):
        read_settings({"model": "m", "references": [item]}, {})


def test_references_need_names_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match="name of its own"):
        read_settings({"model": "m", "references": ["a=1", "a=2"]}, {})


def test_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"INTERLOCK_MAX_BACH .*did you mean INTERLOCK_MAX_BATCH"):
        read_settings({"model": "m"}, {"INTERLOCK_MAX_BACH": "4", "INTERLOCK_URL": "http://127.0.0.1:1"})


def test_unknown_file_key_names_the_nearest(tmp_path: Path) -> None:
    config = toml(tmp_path, 'model = "m"\nmax_bach = 4\n')
    with pytest.raises(ConfigurationError, match=r"max_bach: .*did you mean max_batch"):
        read_settings({"config": config}, {})


def test_missing_model_says_how_to_give_it() -> None:
    with pytest.raises(ConfigurationError, match=r"model: required; give --model or set INTERLOCK_MODEL"):
        read_settings({}, {})


def test_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no file"):
        read_settings({"model": "m", "config": tmp_path / "none.toml"}, {})
    with pytest.raises(ConfigurationError, match="not TOML"):
        read_settings({"model": "m", "config": toml(tmp_path, "model = \n")}, {})


def test_other_hosts_need_a_key_or_the_flag() -> None:
    with pytest.raises(ConfigurationError, match="insecure-no-auth"):
        read_settings({"model": "m", "host": "0.0.0.0"}, {})
    assert read_settings({"model": "m", "host": "0.0.0.0", "api_key": "k"}, {}).host == "0.0.0.0"
    assert read_settings({"model": "m", "host": "0.0.0.0", "insecure_no_auth": True}, {}).api_key is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("max_batch", 0),
        ("max_waiting", -1),
        ("max_strength", float("inf")),
        ("max_strength", 0),
        ("drain_s", float("nan")),
        ("dtype", "int3"),
        ("device", "tpu"),
        ("threads", 0),
        ("max_context", 1),
        ("model", ""),
        ("switch", "../switch"),
        ("api_key", "with\nnewline"),
    ],
)
def test_a_value_out_of_bounds_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field}: "):
        read_settings({"model": "m", field: value}, {})


def test_settings_are_frozen_and_hide_the_key() -> None:
    settings = read_settings({"model": "m", "api_key": "very-secret"}, {})
    assert "very-secret" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_default_data_dir_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert read_settings({"model": "m"}, {}).data_dir == tmp_path / "interlock"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert read_settings({"model": "m"}, {}).data_dir == Path.home() / ".local" / "share" / "interlock"


@pytest.mark.parametrize(
    ("location", "name"), [("/models/stories260K/", "stories260K"), ("org/model", "model"), ("plain", "plain")]
)
def test_model_name_is_the_last_part(location: str, name: str) -> None:
    assert read_settings({"model": location}, {}).model_name == name


def test_every_field_is_documented() -> None:
    undocumented = [name for name, field in Settings.model_fields.items() if not field.description]
    assert undocumented == []


def test_started_processes_do_not_inherit_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_API_KEY", "secret")
    monkeypatch.setenv("HOME_OF_SOMETHING", "kept")
    environment = plain_environment()
    assert "INTERLOCK_API_KEY" not in environment
    assert environment["HOME_OF_SOMETHING"] == "kept"
