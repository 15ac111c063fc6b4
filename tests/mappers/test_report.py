import pytest

from mappers.errors import ArtifactCorrupt, ArtifactMismatch
from mappers.manifest import Manifest
from mappers.mapper_config import MapperConfig
from mappers.report import load_report, save_report

CREATED = "2026-01-02T03:04:05+00:00"
MANIFEST = Manifest(kind="report", name="r", created_at=CREATED, training={"job": "job_1"}, effect={"rate": 0.5})


def test_a_report_comes_back_with_its_files_listed(tmp_path):
    manifest = save_report(tmp_path, {"cells": [1, None]}, {"heatmap": b"\x89PNG"}, MANIFEST)
    assert set(manifest.files) == {"report.json", "heatmap.png"}
    assert load_report(tmp_path) == (manifest, {"cells": [1, None]})


def test_a_changed_report_is_not_read(tmp_path):
    save_report(tmp_path, {}, {}, MANIFEST)
    (tmp_path / "report.json").write_text('{"cells": "other"}')
    with pytest.raises(ArtifactCorrupt, match=r"report\.json"):
        load_report(tmp_path)


def test_what_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_report(tmp_path, {"rate": float("nan")}, {}, MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_are_refused(tmp_path):
    with pytest.raises(ArtifactMismatch, match="not a report"):
        save_report(tmp_path, {}, {}, Manifest(kind="dataset", name="d", created_at=CREATED))
    mapper = MapperConfig(kind="ridge", d_source=2, d_target=2)
    with pytest.raises(ValueError, match="no part of a report"):
        Manifest(kind="report", name="r", created_at=CREATED, mapper=mapper)
