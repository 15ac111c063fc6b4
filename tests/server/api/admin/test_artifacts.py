from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from mappers.artifact import seal
from mappers.manifest import Manifest, ModelBinding
from mappers.report import save_report
from server.policy.policy import Policy
from server.registry.imports import import_dataset
from tests.server.api.conftest import LEAK, bearer, ring
from tests.server.api.fakes import WIDTH

ROWS = b'{"text":"a"}\n{"prompt":"b","completion":null}\n'


def vector_file(width: int = WIDTH) -> bytes:
    return save({"direction.1": np.arange(width, dtype=np.float32)})


def upload(client, name: str = "data", body: bytes = ROWS, **options):
    return client.post(f"/v1/artifacts?name={name}", content=body, **options)


def staged(artifacts) -> list:
    return list(artifacts.new_staging().parent.iterdir())[:-1]


def test_a_dataset_goes_in_and_comes_out_as_it_was(client):
    made = upload(client)
    assert made.status_code == 201
    record = made.json()
    assert (record["object"], record["name"], record["kind"], record["size"]) == (
        "artifact",
        "data",
        "dataset",
        len(ROWS),
    )
    assert record["manifest"]["created_at"].startswith("2023-11-14T22:13:20")
    assert client.get("/v1/artifacts/data").json() == client.get(f"/v1/artifacts/{record['id']}").json() == record
    download = client.get("/v1/artifacts/data/download")
    assert [json.loads(line) for line in download.text.splitlines()] == [json.loads(line) for line in ROWS.splitlines()]
    assert download.headers["content-disposition"] == 'attachment; filename="data.jsonl"'


def test_plain_text_goes_in_as_passages(client):
    made = upload(client, "book", b"One.\n\nTwo.", headers={"Content-Type": "text/plain; charset=utf-8"})
    assert (made.status_code, made.json()["kind"]) == (201, "dataset")
    assert json.loads(client.get("/v1/artifacts/book/download").text) == {"text": "One.\n\nTwo."}
    assert upload(client, "book", b"\xff", headers={"Content-Type": "text/plain"}).status_code == 400


def test_a_vector_is_bound_to_the_served_model_and_round_trips(client):
    made = upload(client, "joy", vector_file()).json()
    assert (made["kind"], made["sites"]) == ("vector", ["resid_post.1"])
    assert made["manifest"]["target"]["model"] == "fake"
    file = client.get("/v1/artifacts/joy/download").content
    assert client.delete("/v1/artifacts/joy").status_code == 204
    again = upload(client, "joy2", file).json()
    assert (again["id"], again["name"]) == (made["id"], "joy2")


def test_a_vector_goes_out_as_gguf_and_comes_in_again(client):
    made = upload(client, "joy", vector_file()).json()
    download = client.get("/v1/artifacts/joy/download?format=gguf")
    assert download.headers["content-disposition"] == 'attachment; filename="joy.gguf"'
    again = upload(client, "joy2", download.content).json()
    assert (again["kind"], again["sites"]) == ("vector", made["sites"])
    assert again["manifest"]["norms"] == made["manifest"]["norms"]


def test_only_vectors_go_out_as_gguf(client):
    upload(client)
    for query, param in (("format=gguf", "format"), ("format=onnx", "format"), ("as=gguf", "as")):
        response = client.get(f"/v1/artifacts/data/download?{query}")
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_activations_are_downloaded_file_by_file(client, artifacts):
    folder = artifacts.new_staging()
    names = ["activations-00000.safetensors", "activations-00001.safetensors"]
    for name in names:
        (folder / name).write_bytes(name.encode())
    binding = ModelBinding(model="fake", config_digest="1" * 64, width=WIDTH)
    seal(
        folder,
        Manifest(
            kind="activations",
            name="acts",
            created_at="2026-01-02T03:04:05+00:00",
            target=binding,
            sites=("resid_post.1",),
            dtype="float16",
        ),
    )
    artifacts.register(folder, name="acts", owner=None)
    assert [one["name"] for one in client.get("/v1/artifacts?kind=activations").json()["data"]] == ["acts"]
    for name in names:
        download = client.get("/v1/artifacts/acts/download", params={"file": name})
        assert download.content == name.encode()
    for missing in ("manifest.json", "other"):
        refused = client.get("/v1/artifacts/acts/download", params={"file": missing})
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "file")


def test_the_list_can_be_of_one_kind_and_has_no_manifests(client):
    upload(client)
    upload(client, "joy", vector_file())
    listed = client.get("/v1/artifacts").json()
    assert listed["object"] == "list"
    assert [(one["name"], "manifest" in one) for one in listed["data"]] == [("joy", False), ("data", False)]
    assert [one["name"] for one in client.get("/v1/artifacts?kind=vector").json()["data"]] == ["joy"]


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"\x80\x04pickle", vector_file(WIDTH + 1), vector_file()[:-4], b'{"text": 5}\n', b"GGUF"]
)
def test_a_bad_file_leaves_nothing_behind(client, artifacts, body):
    response = upload(client, body=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert not LEAK.search(response.text)
    assert client.get("/v1/artifacts").json()["data"] == []
    assert staged(artifacts) == []


def test_uploads_are_counted_as_they_arrive(connect, artifacts):
    client = connect(upload_bytes=100)

    def chunks():
        for _ in range(11):
            yield b"0123456789"

    assert upload(client, body=b"x" * 100).status_code == 400
    assert client.post("/v1/artifacts?name=data", content=iter([b"x" * 99, b"x"])).status_code == 400
    assert upload(client, body=b"x" * 101).status_code == 413
    assert client.post("/v1/artifacts?name=data", content=iter([b"x" * 100, b"x"])).status_code == 413
    assert client.post("/v1/artifacts?name=data", content=chunks()).status_code == 413
    assert upload(client).status_code == 201
    assert staged(artifacts) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 97, "a b", "%00"])
def test_a_bad_name_is_refused(client, name):
    response = upload(client, name)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "name"


def test_the_name_is_needed(client):
    response = client.post("/v1/artifacts", content=ROWS)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "name")


@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("GET", "/download"), ("DELETE", "")])
@pytest.mark.parametrize(("name", "status"), [("nothing", 404), ("%2e%2e%2fetc", 404), ("..%5cetc", 400), (".x", 400)])
def test_what_is_not_there_is_not_found(client, method, suffix, name, status):
    response = client.request(method, f"/v1/artifacts/{name}{suffix}")
    assert response.status_code == status
    assert "root:" not in response.text


def test_an_unknown_kind_is_refused(client):
    response = client.get("/v1/artifacts?kind=gate")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "kind")


def test_a_deleted_artifact_leaves_the_device(connect, make_services):
    services = make_services()
    client = connect(catalog=services.catalog)
    made = upload(client).json()
    assert client.delete("/v1/artifacts/data").status_code == 204
    assert services.catalog.forgotten == [made["id"]]
    assert client.get("/v1/artifacts/data").status_code == 404


def test_the_default_switch_is_replaced_with_the_scope_only_and_never_deleted(connect):
    keys = ring(trainer={"infer", "train"}, chief={"infer", "train", "unswitch", "admin"})
    client = connect(policy=Policy(default_switch="safe"), keys=keys)
    assert upload(client, "safe", headers=bearer("trainer")).status_code == 403
    made = upload(client, "safe", headers=bearer("chief")).json()
    refused = client.delete(f"/v1/artifacts/{made['id']}", headers=bearer("chief"))
    assert refused.status_code == 409
    assert "--switch" in refused.json()["error"]["message"]


def test_what_belongs_to_nobody_is_deleted_by_admins_only(connect, artifacts):
    client = connect(keys=ring(trainer={"infer", "train"}, chief={"infer", "train", "admin"}))
    folder = artifacts.new_staging()
    source = folder.parent / "rows"
    source.write_bytes(ROWS)
    import_dataset(source, folder, name="shared", created_at="2026-01-01T00:00:00+00:00")
    artifacts.register(folder, name="shared", owner=None)
    assert client.get("/v1/artifacts/shared", headers=bearer("trainer")).status_code == 200
    assert client.delete("/v1/artifacts/shared", headers=bearer("trainer")).status_code == 403
    assert client.delete("/v1/artifacts/shared", headers=bearer("chief")).status_code == 204


@pytest.mark.parametrize(("kind", "status"), [("dataset", 201), ("vector", 400), ("model", 400)])
def test_an_upload_may_say_what_it_expects_to_be(client, artifacts, kind, status):
    response = client.post(f"/v1/artifacts?name=data&kind={kind}", content=ROWS)
    assert response.status_code == status
    assert len(client.get("/v1/artifacts").json()["data"]) == (status == 201)
    assert status == 201 or response.json()["error"]["param"] == "kind"
    assert staged(artifacts) == []


@pytest.mark.parametrize("path", ["/v1/artifacts?owner=me", "/v1/jobs?state=done"])
def test_unknown_parameters_are_refused(client, path):
    response = client.get(path)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unknown_field"


def test_a_report_is_downloaded_file_by_file_and_never_uploaded(client, artifacts):
    folder = artifacts.new_staging()
    manifest = Manifest(kind="report", name="sweep", created_at="2026-01-02T03:04:05+00:00")
    save_report(folder, {"chosen": 2}, {"heatmap": b"\x89PNG"}, manifest)
    artifacts.register(folder, name="sweep", owner=None)
    own = client.get("/v1/artifacts/sweep/download")
    assert (own.json(), own.headers["content-disposition"]) == ({"chosen": 2}, 'attachment; filename="sweep.json"')
    picture = client.get("/v1/artifacts/sweep/download?file=heatmap.png")
    assert (picture.content, picture.headers["content-type"]) == (b"\x89PNG", "image/png")
    assert picture.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert picture.headers["x-content-type-options"] == "nosniff"
    for file in ("manifest.json", "other.png"):
        assert client.get(f"/v1/artifacts/sweep/download?file={file}").status_code == 404
    assert client.get("/v1/artifacts/sweep/download?file=../x").status_code == 400
    assert [entry["name"] for entry in client.get("/v1/artifacts?kind=report").json()["data"]] == ["sweep"]
    assert upload(client, "forged", own.content).status_code == 400
    assert client.post("/v1/artifacts?name=x&kind=report", content=ROWS).status_code == 400
