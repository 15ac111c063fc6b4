"""The card of an artifact's repository: what it is, for which model, made from what, with which measured effect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from mappers.artifact import Manifest, ModelBinding, artifact_id

_USE = {
    "switch": '{{"safety_switch": "{name}"}}',
    "vector": '{{"steering": [{{"vector": "{name}", "strength": 1.0}}]}}',
}


def model_card(manifest: Manifest, lineage: Sequence[Mapping[str, Any]]) -> str:
    """``README.md`` of a repository that holds the artifact.

    ``lineage`` are the artifacts that ``GET /v1/artifacts/{id}/lineage`` lists, the artifact itself first.
    """
    tags = ["interlock", "activation-steering", manifest.kind]
    head = ModelCardData(library_name="interlock", tags=tags).to_yaml()
    parts = [
        f"---\n{head}\n---",
        f"# {manifest.name}",
        f"A {manifest.kind} of [Interlock](#use), `{artifact_id(manifest)}`, made {manifest.created_at}.",
        _table("Model", ("role", "model", "width", "sha256 of configuration", "sha256 of weights"), _models(manifest)),
        f"Sites: {', '.join(manifest.sites)}." if manifest.sites else "",
        _table(
            "Measured effect", ("figure", "value"), [(name, f"{value:g}") for name, value in manifest.effect.items()]
        ),
        _table("Made from", ("role", "kind", "name", "id"), _parents(lineage)),
        _details("Training", manifest.training),
        _details("Transfer", manifest.transfer or {}),
        _table(
            "Files", ("file", "bytes", "sha256"), [(name, one.size, one.sha256) for name, one in manifest.files.items()]
        ),
        "## Use",
        "`interlock artifacts pull REPOSITORY --revision COMMIT` checks every file against these digests.",
    ]
    if manifest.kind in _USE:
        parts.append(f"Then, in a request: `{_USE[manifest.kind].format(name=manifest.name)}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _models(manifest: Manifest) -> list[tuple[object, ...]]:
    def row(role: str, one: ModelBinding) -> tuple[object, ...]:
        return role, one.model, one.width, one.config_digest, one.weight_digest or "not known"

    found = {"target": manifest.target, "source": manifest.source}
    return [row(role, one) for role, one in found.items() if one is not None]


def _parents(lineage: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """Every parent of every ancestor, with the kind where it is known."""
    kinds = {one["id"]: one["kind"] for one in lineage}
    links = [(parent, one) for one in lineage for parent in one["parents"]]
    return [
        (f"{parent['role']} of {one['name']}", kinds.get(parent["id"]) or "not known", parent["name"], parent["id"])
        for parent, one in links
    ]


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    if not rows:
        return ""
    lines = [columns, ("---",) * len(columns), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    """As code, so that nothing in it is markup."""
    return f"`{' '.join(str(value).replace('`', chr(39)).replace('|', '/').split())}`"


def _details(title: str, facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    text = json.dumps(facts, indent=2, sort_keys=True).replace("`", "\\u0060")  # no value ends the block
    return f"## {title}\n\n```json\n{text}\n```"
