"""Dashboard and alerts name only metrics and labels that the server exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from server.cli.root import COMMANDS
from server.metrics import Metrics, RowTimer
from server.types import EngineStats, MemoryPlan, Receipt

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
NAMES = re.compile(r"\binterlock_[a-z0-9_]+")
SELECTORS = re.compile(r"\b(interlock_[a-z0-9_]+)\{([^}]*)\}")
MATCHERS = re.compile(r"\b([a-z_]+)\s*(?:=~|!=|!~|=)")
TARGET_LABELS = {"instance", "job"}


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Sample name -> its labels, of a server that has done a bit of everything."""
    metrics = Metrics(CollectorRegistry(), "m")
    timer = RowTimer(metrics, lambda: 1.0, 5)
    timer.tokens(1)
    timer.ended("stop", [Receipt("switch", "safe", "d", (), 1.0, 5, 7, 0.1, "probe", 3, 1.0)])
    jobs = {("train_switch", "running"): 1}
    text = metrics.render((), EngineStats(), MemoryPlan(0, 1, 0), jobs).decode()
    return {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(text) for sample in family.samples
    }


def _board() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((MONITORING / "grafana.json").read_text())
    return board


def _rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def _expressions() -> list[str]:
    panels = [target["expr"] for panel in _board()["panels"] for target in panel["targets"]]
    variables = [one["query"] for one in _board()["templating"]["list"] if one["type"] == "query"]
    return [*panels, *variables, *(rule["expr"] for rule in _rules())]


def test_every_metric_that_is_shown_or_watched_exists(exported: dict[str, set[str]]) -> None:
    named = {name for expression in _expressions() for name in NAMES.findall(expression)}
    assert len(named) > 15
    assert named - exported.keys() == set()


def test_every_label_that_is_asked_for_exists(exported: dict[str, set[str]]) -> None:
    asked = [
        (name, label)
        for expression in _expressions()
        for name, matchers in SELECTORS.findall(expression)
        for label in MATCHERS.findall(matchers)
    ]
    assert ("interlock_interventions_total", "kind") in asked
    assert [pair for pair in asked if pair[1] not in exported[pair[0]] | TARGET_LABELS] == []


def test_every_family_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    shown = " ".join(_expressions())
    families = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in exported}
    assert [family for family in families if family not in shown] == ["interlock_prefix_cache_bytes"]


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    cells = set()
    for panel in _board()["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells
                cells.add((x, y))
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_alert_has_a_remedy_that_can_be_typed() -> None:
    for rule in _rules():
        notes = rule["annotations"]
        assert notes["summary"]
        assert notes["remedy"]
        for command in re.findall(r"\binterlock ([a-z]+)\b", notes["remedy"]):
            assert command in COMMANDS
