"""What the HTTP layer works with; built once by ``serve.py`` and handed to ``create_app``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from server.metrics import Metrics
from server.policy.audit import AuditLog
from server.policy.key_store import KeyStore
from server.policy.policies import PolicyStore
from server.policy.policy import Policy
from server.policy.profiles import ProfileStore
from server.policy.receipts import ReceiptSigner

if TYPE_CHECKING:
    from server.engine.engine import Engine
    from server.engine.text import TextCodec
    from server.interventions.catalog import Catalog
    from server.jobs.service import JobService
    from server.registry.artifacts import ArtifactStore
    from server.tracing import Tracing


def _always_ready() -> str | None:
    return None


def _new_id() -> str:
    return token_hex(12)


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one server.

    ``not_ready`` gives the reason why no requests should be sent yet or any more, None where there is none; it is
    asked on top of ``engine.healthy``. ``tracing`` None makes no spans. ``wall_clock`` gives seconds since the epoch,
    ``stopwatch`` seconds that never go back.
    """

    engine: Engine
    codec: TextCodec
    catalog: Catalog
    artifacts: ArtifactStore
    jobs: JobService
    policies: PolicyStore
    profiles: ProfileStore
    keys: KeyStore
    audit: AuditLog
    signer: ReceiptSigner
    metrics: Metrics
    tracing: Tracing | None = None
    upload_bytes: int = 64 * 1024 * 1024
    engine_name: str = "transformers"
    not_ready: Callable[[], str | None] = _always_ready
    wall_clock: Callable[[], float] = time.time
    stopwatch: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = _new_id
    started_at: float = field(default_factory=time.time)

    @property
    def policy(self) -> Policy:
        """The rules that hold now; what one request reads once does not change under it."""
        return self.policies.current


# Dependencies without I/O are coroutines: FastAPI would send a plain function to a worker thread and back.
async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


InjectedServices = Annotated[Services, Depends(_services)]
