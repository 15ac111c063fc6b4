from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import MOST_NAMES, OTHERS, Metrics, RowTimer
from server.types import EngineStats, GenerationInfo, MemoryPlan, Receipt

LABEL = '{model_name="m"}'


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), "m")


def lines(metrics: Metrics, generations=(), stats=EngineStats(), jobs=()) -> list[str]:
    return metrics.render(generations, stats, MemoryPlan(0, 1000, 0), dict(jobs)).decode().splitlines()


def values(text: list[str]) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text if not line.startswith("#")}


def test_times_are_measured_from_submission_and_from_token_to_token(metrics):
    now = [100.0]
    timer = RowTimer(metrics, lambda: now[0], 6)
    now[0] = 100.5
    timer.tokens(1)
    now[0] = 100.9
    timer.tokens(2)
    timer.tokens(0)
    now[0] = 101.0
    timer.ended("stop", queued_s=0.3)
    text = lines(metrics)
    assert f"interlock_time_to_first_token_seconds_sum{LABEL} 0.5" in text
    assert any(
        line.startswith(f"interlock_inter_token_latency_seconds_sum{LABEL}")
        and abs(float(line.split()[1]) - 0.2) < 1e-9
        for line in text
    )
    assert f"interlock_e2e_request_latency_seconds_sum{LABEL} 1.0" in text
    assert f"interlock_generation_tokens_total{LABEL} 3.0" in text
    assert f"interlock_prompt_tokens_total{LABEL} 6.0" in text
    for stage, seconds in (("queue", 0.3), ("prefill", 0.2), ("decode", 0.4)):
        assert values(text)[f"interlock_request_{stage}_time_seconds_sum{LABEL}"] == pytest.approx(seconds)
    assert f"interlock_request_prompt_tokens_sum{LABEL} 6.0" in text
    assert f"interlock_request_generation_tokens_sum{LABEL} 3.0" in text


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_rows_that_did_not_finish_have_no_latency(metrics, reason):
    RowTimer(metrics, lambda: 1.0, 6).ended(reason)
    text = lines(metrics)
    assert f'interlock_request_success_total{{finished_reason="{reason}",model_name="m"}} 1.0' in text
    assert f"interlock_e2e_request_latency_seconds_count{LABEL} 0.0" in text


def test_interventions_are_counted_by_kind_and_name(metrics):
    receipt = Receipt("switch", "safe", "d", ("resid_post.1",), 1.0, 5, 7, 0.1)
    metrics.ended("stop", [receipt, receipt])
    text = lines(metrics)
    assert 'interlock_interventions_total{kind="switch",model_name="m",name="safe"} 2.0' in text
    assert 'interlock_intervention_tokens_total{kind="switch",model_name="m",name="safe"} 24.0' in text
    assert (
        'interlock_intervention_relative_change_bucket{kind="switch",le="0.1",model_name="m",name="safe"} 2.0' in text
    )


def test_gates_and_drift_are_told_for_each_artifact(metrics):
    joy = Receipt("add", "joy", "d", (), 1.0, 5, 7, 0.1)
    metrics.ended("stop", [Receipt("switch", "safe", "d", (), 1.0, 5, 7, 0.1, "p", 9, 1.4), joy])
    metrics.ended("stop", [Receipt("switch", "safe", "d", (), 1.0, 5, 7, 0.1, "p", 2, 0.95)])
    text = lines(metrics)
    assert 'interlock_gate_hits_total{kind="switch",model_name="m",name="safe"} 11.0' in text
    assert 'interlock_switch_drift_count{model_name="m",name="safe"} 2.0' in text
    assert 'interlock_switch_drift_bucket{le="1.0",model_name="m",name="safe"} 1.0' in text
    assert not any("joy" in line for line in text if "gate" in line or "drift" in line)


def test_names_beyond_a_bound_share_one_label(metrics):
    for number in range(MOST_NAMES + 5):
        metrics.ended("stop", [Receipt("add", f"v{number}", "d", (), 1.0, 1, 0, 0.1)])
    text = lines(metrics)
    assert sum(line.startswith("interlock_interventions_total") for line in text) == MOST_NAMES + 1
    assert f'interlock_interventions_total{{kind="add",model_name="m",name="{OTHERS}"}} 5.0' in text


def test_jobs_are_those_of_the_moment(metrics):
    lines(metrics, jobs={("train_switch", "running"): 1})
    text = lines(metrics, jobs={("train_switch", "succeeded"): 2})
    assert 'interlock_jobs{kind="train_switch",model_name="m",state="succeeded"} 2.0' in text
    assert not any("running" in line for line in text if line.startswith("interlock_jobs{"))


def test_what_vllm_has_is_repeated_under_its_names():
    metrics = Metrics(CollectorRegistry(), "m", as_vllm=True)
    timer = RowTimer(metrics, lambda: 1.0, 6)
    timer.tokens(2)
    timer.ended("length", [Receipt("switch", "safe", "d", (), 1.0, 5, 7, 0.1)])
    found = values(lines(metrics))
    for name in ("time_to_first_token_seconds_count", "generation_tokens_total", "request_queue_time_seconds_count"):
        assert found[f"vllm:{name}{LABEL}"] == found[f"interlock_{name}{LABEL}"] > 0
    assert found['vllm:request_success_total{finished_reason="length",model_name="m"}'] == 1
    assert not any("intervention" in name for name in found if name.startswith("vllm:"))
    families = {family.name for family in text_string_to_metric_families("\n".join(lines(metrics)) + "\n")}
    assert {"vllm:num_requests_waiting", "interlock_num_requests_waiting", "interlock_jobs"} <= families


def test_reuse_and_memory_are_the_engines(metrics):
    lines(metrics, stats=EngineStats(kv_promised=100, prefix_bytes=7, prefix_queries=64, prefix_hits=32))
    text = lines(metrics, stats=EngineStats(kv_promised=250, prefix_bytes=5, prefix_queries=96, prefix_hits=48))
    assert f"interlock_kv_cache_usage_perc{LABEL} 0.25" in text
    assert f"interlock_prefix_cache_bytes{LABEL} 5.0" in text
    assert f"interlock_prefix_cache_queries_total{LABEL} 96.0" in text
    assert f"interlock_prefix_cache_hits_total{LABEL} 48.0" in text


def test_running_and_waiting_are_those_of_the_moment(metrics):
    rows = [GenerationInfo(str(i), None, state, 1, 0, ()) for i, state in enumerate(("waiting", "prefill", "decode"))]
    text = lines(metrics, rows)
    assert f"interlock_num_requests_running{LABEL} 2.0" in text
    assert f"interlock_num_requests_waiting{LABEL} 1.0" in text
    assert f"interlock_num_requests_running{LABEL} 0.0" in lines(metrics)


def test_two_servers_in_one_process_share_nothing():
    first, second = Metrics(CollectorRegistry(), "m"), Metrics(CollectorRegistry(), "m")
    first.prompt_tokens.inc(3)
    assert f"interlock_prompt_tokens_total{LABEL} 0.0" in lines(second)
