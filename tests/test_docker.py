"""The container files without a container engine: the image's promises, and compose files that merge as meant."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).resolve().parents[1] / "docker"


def compose(name: str) -> dict[str, Any]:
    document = yaml.safe_load((DOCKER / name).read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, continuation lines joined, comments left out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, rest) for name, _, rest in pairs]


def last_stage(instructions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    start = max(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[start:]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    if not Path(hadolint).exists():
        pytest.skip("hadolint is not installed")
    result = subprocess.run([hadolint, str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_image_runs_as_an_ordinary_user_and_checks_its_own_health(instructions: list[tuple[str, str]]) -> None:
    final = dict(last_stage(instructions))
    assert final["USER"] == "10001:10001"
    assert final["EXPOSE"] == "8000"
    assert final["VOLUME"] == "/data"
    assert final["ENTRYPOINT"] == '["interlock"]'
    assert final["HEALTHCHECK"].endswith('CMD ["interlock", "health"]')


def test_any_builder_can_build_it(instructions: list[tuple[str, str]]) -> None:
    assert not any("<<" in rest or "--link" in rest or "--mount" in rest for _, rest in instructions)
    assert not any("cuda" in rest.lower() for name, rest in instructions if name == "FROM")


def test_every_copied_path_is_sent_to_the_builder(instructions: list[tuple[str, str]]) -> None:
    allowed = {line[1:] for line in (DOCKER.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {
        source
        for name, rest in instructions
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert sources <= allowed


def test_compose_needs_a_key_and_is_reached_from_this_machine_only() -> None:
    service = compose("compose.yaml")["services"]["interlock"]
    assert ":?" in service["environment"]["INTERLOCK_API_KEY"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    named = {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(("$", ".", "/"))}
    assert named == set(compose("compose.yaml")["volumes"])


def test_the_gpu_override_reserves_one_for_the_same_service_and_insists_on_it() -> None:
    base, override = compose("compose.yaml")["services"], compose("compose.gpu.yaml")["services"]
    assert set(override) <= set(base)
    (device,) = override["interlock"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert override["interlock"]["environment"]["INTERLOCK_DEVICE"] == "cuda"
    assert override["interlock"]["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


def test_compose_sets_only_variables_that_the_server_knows() -> None:
    from server.settings import ENV_PREFIX, Settings

    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in ("compose.yaml", "compose.gpu.yaml"):
        variables = compose(name)["services"]["interlock"]["environment"]
        assert {variable for variable in variables if not variable.startswith("NVIDIA_")} <= known


def test_compose_limits_memory() -> None:
    service = compose("compose.yaml")["services"]["interlock"]
    assert service["deploy"]["resources"]["limits"]["memory"] == "${MEMORY_LIMIT:-16g}"


def test_the_systemd_unit_drains_as_long_as_compose_and_gains_no_privileges() -> None:
    unit = (DOCKER / "interlock.service").read_text()
    directives = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    grace = compose("compose.yaml")["services"]["interlock"]["stop_grace_period"]
    assert directives["TimeoutStopSec"] + "s" == grace
    assert (directives["NoNewPrivileges"], directives["CapabilityBoundingSet"]) == ("yes", "")
    assert (directives["User"], directives["ProtectSystem"]) == ("interlock", "strict")
