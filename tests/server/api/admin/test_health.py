from __future__ import annotations

from server.engine.request import GenerationRequest
from server.types import SamplingParams
from tests.server.api.conftest import COMPLETION


def test_ready_until_told_otherwise(connect, engine):
    reasons = [None, "the server is shutting down"]
    client = connect(not_ready=lambda: reasons[0])
    assert client.get("/health/ready").json() == {"status": "ok"}
    reasons.reverse()
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert "shutting down" in response.json()["error"]["message"]
    assert response.headers["retry-after"] == "5"
    assert client.get("/health/live").status_code == 200


def test_an_engine_that_stopped_is_not_ready(client, engine):
    engine.healthy = False
    assert client.get("/health/ready").status_code == 503


def test_metrics_count_what_happened(client, engine):
    client.post("/v1/completions", json=COMPLETION | {"n": 2, "safety_switch": "safe"})
    engine.hold = True
    engine.submit(GenerationRequest("a", (1,), SamplingParams(max_tokens=1)), lambda _: None)
    text = client.get("/metrics").text
    label = '{model_name="fake"}'
    assert f"interlock_prompt_tokens_total{label} 8.0" in text
    assert f"interlock_generation_tokens_total{label} 8.0" in text
    assert f"interlock_num_requests_running{label} 1.0" in text
    assert f"interlock_num_requests_waiting{label} 0.0" in text
    assert 'interlock_request_success_total{finished_reason="length",model_name="fake"} 2.0' in text
    assert 'interlock_interventions_total{kind="switch",model_name="fake",name="safe"} 2.0' in text
    assert 'interlock_intervention_tokens_total{kind="switch",model_name="fake",name="safe"} 16.0' in text
    assert f"interlock_time_to_first_token_seconds_count{label} 2.0" in text
    assert f"interlock_inter_token_latency_seconds_count{label} 6.0" in text
    assert f"interlock_e2e_request_latency_seconds_count{label} 2.0" in text
