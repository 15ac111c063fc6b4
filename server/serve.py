"""The composition root: every part is built here, in order, and taken down in the opposite order."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from secrets import token_hex

import structlog
import torch
from alembic.util.exc import CommandError
from prometheus_client import CollectorRegistry
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError
from transformers.utils import logging as transformers_logging

from mappers.loading import LoadedModel, load_model
from server.api.app import create_app
from server.api.services import Services
from server.banner import Access, print_banner
from server.canary import try_artifacts
from server.data_dir import (
    ARTIFACTS_FOLDER,
    CANARIES_FOLDER,
    DATABASE_FILE,
    JOBS_FOLDER,
    RECEIPT_KEY_FILE,
    owned,
)
from server.engine.engine import Engine
from server.engine.linears import install_linears
from server.engine.loader import EngineOptions, build_engine
from server.engine.precision import Precision, pick_precision
from server.engine.text import TextCodec
from server.interventions.catalog import Catalog
from server.jobs.attempt import Patience
from server.jobs.directory import ModelDirectory
from server.jobs.protocol import Execution
from server.jobs.queue import JobQueue
from server.jobs.service import JobService
from server.jobs.supervisor import Supervisor, SupervisorConfig
from server.listener import DrainingServer, bind, url_of
from server.logs import configure_logging
from server.metrics import Metrics
from server.policy.audit import AuditLog
from server.policy.key_store import KeyStore
from server.policy.keys import KeyRing
from server.policy.policies import PolicyStore
from server.policy.policy import Policy
from server.policy.profiles import ProfileStore
from server.policy.receipts import ReceiptSigner, kept_key
from server.registry.artifacts import ArtifactStore
from server.registry.database import Database, DatabaseError
from server.settings import ConfigurationError, Settings, plain_environment
from server.tracing import Tracing, open_provider
from server.types import InterventionSpec, ModelInfo

_log = structlog.get_logger(__name__)

IDLE_PREFILL = 4
"""Times as many prompt tokens are read in a step where no answer waits for it."""

SWITCH_INTERVAL_S = 0.0005
"""The engine's thread holds the interpreter for most of a step; at the default of 5 ms the event loop starves."""


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish and returns.

    Raises an InterlockError, before anything listens, where this model cannot be served with these settings.
    """
    configure_logging(settings.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    transformers_logging.disable_progress_bar()
    draining = threading.Event()
    with (
        owned(settings.data_dir),
        closing(bind(settings.host, settings.port)) as listener,
        running_services(settings, draining) as services,
    ):
        url = url_of(listener)

        def started() -> None:
            _log.info("listening", url=url, model=services.engine.info.name)
            info = services.engine.info
            default = settings.switch or services.policy.document.default_profiles.get(info.name)
            access = Access(services.keys.open, default)
            print_banner(Console(highlight=False), settings, info, services.engine.limits, url, access)

        def drain() -> None:
            draining.set()
            _log.info("draining", seconds=settings.drain_s)
            jobs = threading.Thread(target=services.jobs.stop, name="stop-jobs")
            jobs.start()
            services.engine.drain(settings.drain_s)
            jobs.join()

        DrainingServer(create_app(services), started=started, drain=drain).run([listener])
    _log.info("stopped")


@contextmanager
def running_services(settings: Settings, draining: threading.Event) -> Iterator[Services]:
    """All parts of one server, started; stopped at the end of the block. ``draining`` makes it not ready.

    Raises an InterlockError where one of them cannot work with these settings.
    """
    with ExitStack() as stack:
        database = _open_database(settings)
        stack.callback(database.close)
        audit = AuditLog(database, clock=time.time)
        artifacts = ArtifactStore(
            settings.data_dir / ARTIFACTS_FOLDER, database, clock=time.time, on_change=audit.artifact_changed
        )
        _reconcile(artifacts)
        services = _assemble(settings, database, artifacts, audit, draining)
        if services.tracing is not None:
            stack.callback(services.tracing.close)
        services.engine.start()
        stack.callback(services.engine.stop)
        try_artifacts(services.engine, services.catalog, artifacts, settings.data_dir / CANARIES_FOLDER)
        services.jobs.start()
        stack.callback(services.jobs.stop)
        yield services


def pick_device(wanted: str) -> str:
    """``cuda`` or ``cpu``; raises ConfigurationError where a GPU is asked for and there is none."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigurationError(
            "device: torch sees no CUDA GPU here: use --device cpu, or check driver and torch build"
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def _open_database(settings: Settings) -> Database:
    """At this version's schema, and this server's alone; raises ConfigurationError where it cannot be used."""
    file = settings.data_dir / DATABASE_FILE
    what, url = f"data_dir: {file}", f"sqlite:///{file}"
    if settings.database_url is not None:
        what, url = "database_url: the database", settings.database_url.get_secret_value()
    with ExitStack() as undo:
        try:
            database = Database(url)
            undo.callback(database.close)
            database.own()
            database.upgrade()
        except (SQLAlchemyError, CommandError, DatabaseError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(f"{what} cannot be used by this version: {reason}") from error
        undo.pop_all()
    return database


def _assemble(
    settings: Settings, database: Database, artifacts: ArtifactStore, audit: AuditLog, draining: threading.Event
) -> Services:
    endpoint = settings.otlp_traces_endpoint
    tracing = None if endpoint is None else Tracing(open_provider(endpoint), settings.model_name)
    # OpenMP keeps threads for every thread that computed, and where there are more than cores all of them wait asleep:
    # what loads the model has to be gone when the engine's own thread begins, or each product starts late.
    with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
        engine, codec, training_dtype = loader.submit(_build, settings).result()
    budget_bytes = settings.artifact_memory_mib * 2**20
    catalog = Catalog(artifacts.get, engine.info, engine.info.device, settings.max_strength, budget_bytes)
    policies, profiles, keys = _access(settings, database, audit, engine.info, catalog)
    return Services(
        engine=engine,
        codec=codec,
        catalog=catalog,
        artifacts=artifacts,
        jobs=_jobs(settings, database, artifacts, engine.info, training_dtype),
        policies=policies,
        profiles=profiles,
        keys=keys,
        audit=audit,
        signer=ReceiptSigner(_receipt_key(settings)),
        metrics=Metrics(CollectorRegistry(), engine.info.name, as_vllm=settings.metrics_compat == "vllm"),
        tracing=tracing,
        not_ready=lambda: "the server is shutting down" if draining.is_set() else None,
    )


def _access(
    settings: Settings, database: Database, audit: AuditLog, model: ModelInfo, catalog: Catalog
) -> tuple[PolicyStore, ProfileStore, KeyStore]:
    """Bound to the artifact that the default switch's name leads to now: a name that moves later moves no default."""
    switch = None
    if settings.switch is not None:
        switch = catalog.resolve(InterventionSpec(operation="switch", source=settings.switch, param="switch")).digest
    start = Policy(default_switch=settings.switch, max_strength=settings.max_strength, switch_artifact=switch)
    policies = PolicyStore(database, audit, start, model=model.name, clock=time.time)
    profiles = ProfileStore(database, audit, clock=time.time)
    first = KeyRing.first(settings.api_key.get_secret_value() if settings.api_key else None)
    keys = KeyStore(database, audit, first, clock=time.time)
    for store in (policies, profiles, keys):
        store.load()
    return policies, profiles, keys


def _receipt_key(settings: Settings) -> bytes:
    if settings.receipt_key is not None:
        return settings.receipt_key.get_secret_value().encode()
    try:
        return kept_key(settings.data_dir / RECEIPT_KEY_FILE)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"data_dir: {RECEIPT_KEY_FILE} cannot be used as the key of receipts: {error}"
        ) from error


def _build(settings: Settings) -> tuple[Engine, TextCodec, str]:
    device = pick_device(settings.device)
    precision = pick_precision(settings.dtype, device, torch.cpu.get_capabilities())
    loaded = _load(settings, device, precision)
    options = _options(settings)
    engine, codec = build_engine(loaded, options, name=settings.model_name, dtype_reason=precision.reason)
    return engine, codec, precision.training_dtype(loaded.model)


def _options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        max_batch=settings.max_batch,
        max_waiting=settings.max_waiting,
        prefill_tokens=settings.prefill_tokens,
        idle_prefill_tokens=IDLE_PREFILL * settings.prefill_tokens,
        max_context=settings.max_context,
        static=False if settings.enforce_eager else None,
        kv_bytes=None if settings.kv_memory_mib is None else settings.kv_memory_mib * 2**20,
        prefix_bytes=None if settings.prefix_memory_mib is None else settings.prefix_memory_mib * 2**20,
    )


def _load(settings: Settings, device: str, precision: Precision) -> LoadedModel:
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        loaded = load_model(
            settings.model,
            dtype=precision.dtype,
            device=device,
            quantization=precision.quantization,
            trust_remote_code=settings.trust_remote_code,
        )
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(f"model: {settings.model} does not fit on {device}: use --dtype int8") from error
    if device == "cpu":
        install_linears(loaded.model, precision.weight_format)
    return loaded


def _jobs(
    settings: Settings, database: Database, artifacts: ArtifactStore, model: ModelInfo, training_dtype: str
) -> JobService:
    if model.name in settings.references:
        raise ConfigurationError(f"references: {model.name} is the served model's name: choose another")
    for name, place in settings.references.items():
        if place.startswith(("/", ".", "~")) and not Path(place).expanduser().is_dir():
            raise ConfigurationError(f"references: {name}: there is no folder {place}")
    models = ModelDirectory(model, settings.model, settings.references)
    queue = JobQueue(database, clock=time.time)
    execution = Execution.model_validate(
        {
            "device": model.device,
            "dtype": training_dtype,
            "trust_remote_code": settings.trust_remote_code,
            "threads": max(1, (settings.threads or os.cpu_count() or 1) // 2),
        }
    )
    config = SupervisorConfig(
        execution=execution, patience=Patience(grace_s=settings.drain_s), environment=plain_environment()
    )
    supervisor = Supervisor(queue, artifacts, models, settings.data_dir / JOBS_FOLDER, config)
    return JobService(queue, supervisor, artifacts, models, new_id=lambda: token_hex(12))


def _reconcile(artifacts: ArtifactStore) -> None:
    found = artifacts.reconcile()
    if found.removed or found.adopted or found.rejected:
        _log.warning("artifacts_reconciled", removed=found.removed, adopted=found.adopted, rejected=found.rejected)
