"""``interlock jobs``: submit, list, show, watch, cancel and resume background jobs of a running server."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from server.cli.client import DEFAULT_URL, Client, CommandFailed, Key, Url
from server.cli.json_file import read_object
from server.cli.output import AsJson, age, print_fields, print_json, print_table
from server.cli.root import command_app

POLL_SECONDS = 0.3
TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "interrupted"})

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job, as `interlock jobs list` shows it.")]

app = command_app(no_args_is_help=True, help="Submit background jobs to a running server and watch them.")


@app.command()
def submit(
    kind: Annotated[str, typer.Argument(help="train_switch, train_mapper, extract_vector, transfer_vector ...")],
    name: Annotated[str, typer.Option("--name", help="Name of the artifact that the job makes.")],
    parameters: Annotated[
        Path | None,
        typer.Option("--parameters", help="JSON file with the job's parameters.", exists=True, dir_okay=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="One parameter; VALUE is JSON, or plain text. Repeatable.", metavar="NAME=VALUE"),
    ] = None,
    priority: Annotated[
        int,
        typer.Option("--priority", min=-10, max=10, help="Of jobs that wait, higher ones go first."),
    ] = 0,
    follow: Annotated[bool, typer.Option("--watch", help="Stay until the job has ended.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job. The parameters of each kind are listed by the server itself: URL/docs, POST /v1/jobs.

    Example: interlock jobs submit train_switch --name safe --set base=base --set dataset=prompts
    --set 'sites=[{"layer": 2}]' --watch
    """
    body: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "parameters": read_parameters(parameters, settings or []),
    }
    if priority:
        body["priority"] = priority
    with Client(url, api_key) as client:
        job = client.post("/v1/jobs", body)
        if follow:
            job = watch_job(client, job["id"], Console(stderr=as_json))
    _report(job, as_json)


@app.command("list")
def list_jobs(url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """List jobs, newest first."""
    with Client(url, api_key) as client:
        answer = client.get("/v1/jobs")
    if as_json:
        print_json(answer)
        return
    rows = [
        (job["id"], job["kind"], job["name"], _state_text(job), age(job.get("created_at"))) for job in answer["data"]
    ]
    print_table("Jobs", ("id", "kind", "name", "state", "created"), rows)


@app.command()
def show(job_id: JobId, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show one job with its parameters and figures."""
    with Client(url, api_key) as client:
        job = client.get(f"/v1/jobs/{job_id}")
    if as_json:
        print_json(job)
    else:
        print_fields(job)


@app.command()
def watch(job_id: JobId, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Follow a job until it has ended; exit code 1 unless it succeeded. Ctrl-C leaves the job running."""
    with Client(url, api_key) as client:
        job = watch_job(client, job_id, Console(stderr=as_json))
    _report(job, as_json)


@app.command()
def cancel(job_id: JobId, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Cancel a job that waits or runs."""
    with Client(url, api_key) as client:
        _report(client.post(f"/v1/jobs/{job_id}/cancel"), as_json, must_succeed=False)


@app.command()
def resume(job_id: JobId, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Resume a job that failed, was cancelled or interrupted, from its last checkpoint."""
    with Client(url, api_key) as client:
        _report(client.post(f"/v1/jobs/{job_id}/resume"), as_json)


@app.command()
def log(job_id: JobId, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Print what the job's process wrote."""
    with Client(url, api_key) as client:
        typer.echo(client.text(f"/v1/jobs/{job_id}/log"), nl=False)


def watch_job(client: Client, job_id: str, console: Console) -> dict[str, Any]:
    """Polls the job until it has ended, with a progress bar on ``console``; returns the ended job."""
    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=console) as bar:
        stages: dict[str, TaskID] = {}
        job = client.get(f"/v1/jobs/{job_id}")
        bar.console.print(f"{job['kind']} {job['name']} ({job_id})", markup=False, highlight=False)
        while job["state"] not in TERMINAL_STATES:
            _show_progress(bar, stages, job)
            time.sleep(POLL_SECONDS)
            job = client.get(f"/v1/jobs/{job_id}")
        _show_progress(bar, stages, job)
        return job


def _show_progress(bar: Progress, stages: dict[str, TaskID], job: dict[str, Any]) -> None:
    """One line for each stage; ``stages`` maps those already shown to their lines. Earlier stages are shown as full."""
    progress = job.get("progress") or {}
    stage = progress.get("stage") or job["state"]
    if stage not in stages:
        stages[stage] = bar.add_task(stage, total=progress.get("total"), figures="")
    figures = _figures(progress.get("metrics") or {})
    bar.update(stages[stage], completed=progress.get("step") or 0, total=progress.get("total"), figures=figures)
    done = list(stages.values())[: None if job["state"] == "succeeded" else -1]
    for task in bar.tasks:
        if task.id in done and not task.finished:
            total = task.total or task.completed or 1
            bar.update(task.id, total=total, completed=total)


def read_parameters(file: Path | None, settings: Sequence[str]) -> dict[str, Any]:
    """Parameters of a job from a JSON file, with NAME=VALUE items over them. Raises typer.BadParameter."""
    parameters: dict[str, Any] = {}
    if file is not None:
        parameters = read_object(file, "--parameters")
    for item in settings:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"write NAME=VALUE, got {item!r}", param_hint="--set")
        parameters[name] = _json_or_text(value)
    return parameters


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _report(job: dict[str, Any], as_json: bool, must_succeed: bool = True) -> None:
    if as_json:
        print_json(job)
    else:
        made = ", ".join(job.get("artifact_names") or job.get("artifacts") or [])
        typer.echo(f"{job['id']} {job['kind']} {job['name']}: {job['state']}" + (f", made {made}" if made else ""))
    if must_succeed and job["state"] in TERMINAL_STATES - {"succeeded"}:
        error = job.get("error") or {}
        reason = error.get("message") or f"see `interlock jobs log {job['id']}`"
        raise CommandFailed(f"job {job['id']} {job['state']}: {reason}")


def _state_text(job: dict[str, Any]) -> str:
    """The state, for a running job with the stage it is in."""
    progress = job.get("progress") or {}
    if job["state"] != "running" or not progress:
        return str(job["state"])
    total = progress.get("total")
    return f"{progress.get('stage', '')} {progress.get('step', 0)}" + (f"/{total}" if total else "")


def _figures(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:2])
