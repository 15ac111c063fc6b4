"""A data directory that an earlier version wrote opens with all that was in it; one of a later version is refused."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from mappers.artifact import verify
from server.api.services import Services
from server.jobs.model import JobState
from server.policy.audit import Filter
from server.registry.database import Database
from server.registry.imports import import_dataset
from server.serve import running_services
from server.settings import ConfigurationError, read_settings
from server.types import InterventionSpec
from tests.server.postgresql import Cluster

KEPT_DIR = Path(__file__).parent
MODEL = Path(__file__).parents[3] / "mappers" / "organisms" / "weights" / "llama-small-backdoor"
SECRET = "ilk_b1e2eab64d435536e6e84746342138023ec31dfa11cb509e45242f8e0456bde2"
KEY = "key_24ca5f86f73ddd5f3601b5ac"
COLOUR = "art_810b491854a3dfb2eb040b25"
ARTIFACTS = {
    "red": "art_7c1a35a30de3187692346f14",
    "blue": "art_6a1ff7c5df799a48e94c8bea",
    "colour": COLOUR,
    "notes": "art_23f74100d860eade3f78fd2d",
}


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as kept:
        kept.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module", params=sorted(KEPT_DIR.glob("schema-*.tar.gz")), ids=lambda path: path.name)
def services(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """A server of this version over a copy of the kept folder."""
    data_dir = unpacked(request.param, tmp_path_factory.mktemp("data"))
    options = {"model": str(MODEL), "data_dir": data_dir, "device": "cpu", "threads": 1, "dtype": "float32"}
    options["api_key"] = "fixture-first-key"
    with running_services(read_settings(options, {}), threading.Event()) as services:
        yield services


def test_artifacts_keep_ids_names_owners_and_content(services: Services) -> None:
    assert {record.name: record.id for record in services.artifacts.list()} == ARTIFACTS
    assert all(verify(record.path) == record.manifest for record in services.artifacts.list())
    owners = {name: services.artifacts.get(name).owner for name in ARTIFACTS}
    assert owners == {"red": "operator", "blue": "operator", "colour": "operator", "notes": KEY}


def test_a_vector_of_then_can_be_used_now(services: Services) -> None:
    wanted = InterventionSpec(operation="add", source="colour", param="steering[0]")
    assert services.catalog.resolve(wanted).digest == COLOUR


def test_jobs_keep_state_inputs_and_results(services: Services) -> None:
    later, colour = services.jobs.list()
    assert (later.name, later.state) == ("later", JobState.CANCELLED)
    assert (colour.name, colour.state, colour.artifacts) == ("colour", JobState.SUCCEEDED, (COLOUR,))
    assert {name: colour.inputs[name] for name in ("red", "blue")} == {
        name: ARTIFACTS[name] for name in ("red", "blue")
    }


def test_keys_profiles_and_policy_hold_as_they_did(services: Services) -> None:
    principal = services.keys.authenticate(SECRET)
    assert (principal.owner, principal.scopes) == (KEY, {"infer", "steer", "train"})
    profile = services.profiles.get("coloured", principal)
    assert (profile.shared, dict(profile.artifacts)) == (True, {"colour": COLOUR})
    assert (services.policy.version, services.policy.document.limits.max_strength) == (1, 50.0)


def test_the_audit_chain_runs_on(services: Services) -> None:
    before = services.audit.verify()
    assert (before.problem, before.entries) == (None, 7)
    services.artifacts.delete("notes", by="operator")
    after = services.audit.verify(before.head)
    assert (after.problem, after.entries) == (None, 8)
    assert services.audit.list(Filter(limit=1))[0].action == "artifact.deleted"


def test_a_later_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'interlock.db'}"
    database = Database(url)
    database.upgrade()
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    settings = read_settings({"model": str(MODEL), "data_dir": tmp_path}, {})
    refused = pytest.raises(ConfigurationError, match=r"newer version of Interlock \(schema 9999")
    with refused, running_services(settings, threading.Event()):
        pass
    with database.read() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    database.close()


def test_postgresql_holds_what_a_server_keeps(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.fresh(None) as url:
        options = {"model": str(MODEL), "data_dir": tmp_path, "device": "cpu", "threads": 1, "database_url": url}
        settings = read_settings(options, {})
        with running_services(settings, threading.Event()) as services:
            rows = tmp_path / "rows"
            rows.write_bytes(b'{"text":"a"}\n')
            folder = services.artifacts.new_staging()
            import_dataset(rows, folder, name="kept", created_at="2026-01-01T00:00:00+00:00")
            services.artifacts.register(folder, name="kept", owner=None)
            refused = pytest.raises(ConfigurationError, match="in use by another server")
            with refused, running_services(settings, threading.Event()):
                pass
        with running_services(settings, threading.Event()) as services:
            assert services.artifacts.get("kept").kind == "dataset"
            assert services.audit.verify().entries == 1
    assert not (tmp_path / "interlock.db").exists()
