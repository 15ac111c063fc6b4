"""Submits the quickstart's background jobs over HTTP and shows how they progress."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from server.cli.client import Client, CommandFailed
from server.cli.jobs import watch_job
from server.quickstart.recipe import Recipe


def upload_datasets(client: Client, datasets: Mapping[str, bytes]) -> None:
    """Makes each dataset an artifact of the server."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in datasets.items():
            file = Path(folder) / f"{name}.jsonl"
            file.write_bytes(lines)
            client.upload("/v1/artifacts", file, "application/jsonl", name=name, kind="dataset")


def run_jobs(client: Client, recipe: Recipe, console: Console) -> None:
    """Runs every job to its end, each with a progress bar; raises CommandFailed where one does not succeed."""
    for job in job_requests(recipe):
        submitted = client.post("/v1/jobs", job)
        ended = watch_job(client, submitted["id"], console)
        if ended["state"] != "succeeded":
            reason = (ended.get("error") or {}).get("message") or "no reason given"
            raise CommandFailed(f"job {job['kind']} '{job['name']}' {ended['state']}: {reason}")


def job_requests(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The jobs in their order: the switch, then what a transferred vector needs."""
    source_site, target_site = {"layer": recipe.source_layer}, {"layer": recipe.target_layer}
    pairs = {"positive": "triggered", "negative": "clean"}
    yield _job(
        "train_switch",
        "safe",
        base=recipe.base,
        dataset="switch-prompts",
        sites=[{"layer": recipe.switch_layer}],
        steps=recipe.switch_steps,
        batch_size=recipe.switch_rows,
        learning_rate=recipe.switch_learning_rate,
        max_new_tokens=recipe.max_tokens,
    )
    yield _job("extract_vector", "backdoor-native", sites=[target_site], **pairs)
    yield _job("extract_vector", "backdoor-source", model=recipe.source, sites=[source_site], **pairs)
    yield _job(
        "train_mapper",
        "source-to-target",
        source=recipe.source,
        source_site=source_site,
        target_site=target_site,
        dataset="texts",
        mapper="ridge",
        ridge=recipe.ridge,
    )
    yield _job(
        "transfer_vector",
        "backdoor-mapped",
        vector="backdoor-source",
        mapper="source-to-target",
        rescale={"to": "native", "vector": "backdoor-native"},
    )


def _job(kind: str, name: str, **parameters: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "parameters": parameters}
