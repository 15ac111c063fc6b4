"""``interlock artifacts name|unname|lineage|gc``: names that move, what was made from what, what nobody needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.tree import Tree

from server.cli.client import DEFAULT_URL, Client, Key, Url
from server.cli.output import AsJson, byte_size, print_json, print_table

app = typer.Typer()
"""Taken into ``interlock artifacts``."""

Artifact = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the artifact.")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The name that leads, or is to lead, to the artifact.")]


@app.command()
def name(
    artifact: Artifact,
    alias: Alias,
    expected: Annotated[
        str | None, typer.Option("--expected", help="Only if it leads to this id until now; none: if it is new.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make a name lead to an artifact, from the next request on."""
    with Client(url, api_key) as client:
        answer = client.put(f"/v1/artifacts/{artifact}/names/{alias}", expected=expected)
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"{alias}: {answer['kind']} {answer['id']}")


@app.command()
def unname(
    artifact: Artifact, alias: Alias, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False
) -> None:
    """Take a name from an artifact, which stays under its id."""
    with Client(url, api_key) as client:
        client.delete(f"/v1/artifacts/{artifact}/names/{alias}")
    if as_json:
        print_json({"unnamed": alias})
    else:
        typer.echo(f"{alias} leads nowhere now")


@app.command()
def lineage(artifact: Artifact, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show what an artifact was made from, down to datasets and models, and what was made from it."""
    with Client(url, api_key) as client:
        answer = client.get(f"/v1/artifacts/{artifact}/lineage")
    if as_json:
        print_json(answer)
        return
    tree = _tree({one["id"]: one for one in answer["artifacts"]}, answer["id"])
    console = Console(highlight=False, markup=False)
    console.print(tree, soft_wrap=True)
    for child in answer["children"]:
        console.print(f"used by {child['kind']} {child['name']} {child['id']}", soft_wrap=True)
    if not answer["complete"]:
        console.print("there are more than are shown")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, max=1e9, help="Spare what was made less than so many seconds ago.")
    ] = 3600.0,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that no name, profile, policy, key, unfinished job or loaded intervention leads to."""
    with Client(url, api_key) as client:
        answer = client.post("/v1/artifacts/gc", dry_run="true" if dry_run else None, older_than_s=older_than)
    if as_json:
        print_json(answer)
        return
    removed = answer["removed"]
    rows = [(one["name"], one["kind"], one["id"], byte_size(one["size"])) for one in removed]
    if rows:
        print_table("Artifacts", ("name", "kind", "id", "size"), rows)
    total = byte_size(sum(one["size"] for one in removed))
    typer.echo(f"{'would remove' if dry_run else 'removed'} {len(removed)} artifacts, {total}")


def _tree(artifacts: Mapping[str, Mapping[str, Any]], root: str) -> Tree:
    """What several were made from is spelt out at the first of them."""
    spelt: set[str] = set()

    def grow(under: Tree, identity: str, role: str = "") -> None:
        one = artifacts.get(identity, {})
        known = identity in spelt
        kind = one.get("kind") or "gone, or not yours:"
        branch = under.add(f"{role}{kind} {one.get('name', '')} {identity}{' (see above)' if known else ''}")
        if known:
            return
        spelt.add(identity)
        for parent in one.get("parents", ()):
            grow(branch, parent["id"], f"{parent['role']}: ")
        for model in one.get("models", ()):
            weights = model["weight_digest"]
            branch.add(f"{model['role']} model: {model['model']}" + (f" (weights {weights[:12]})" if weights else ""))

    top = Tree("", hide_root=True)
    grow(top, root)
    return top
