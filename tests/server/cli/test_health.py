"""``interlock health`` is what container health checks call: the exit code is the answer."""

from __future__ import annotations

from collections.abc import Callable

from tests.server.cli.conftest import Ran, StandIn


def test_ready(interlock: Callable[..., Ran], server: StandIn) -> None:
    server.answer("GET", "/health/ready", {"status": "ready"})
    assert interlock("health").code == 0
    assert interlock("health", "--json").json == {"status": "ready"}


def test_not_ready(interlock: Callable[..., Ran], server: StandIn) -> None:
    server.answer("GET", "/health/ready", {"error": {"message": "draining"}}, status=503)
    ran = interlock("health")
    assert (ran.code, ran.err.strip()) == (1, "error: draining [request req-1]")
