def test_the_served_model_is_listed_and_shown(client):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model == {
        "id": "fake",
        "object": "model",
        "created": 1_600_000_000,
        "owned_by": "interlock",
        "max_model_len": 2048,
    }
    assert client.get("/v1/models/fake").json() == model


def test_another_model_is_not_found(client):
    response = client.get("/v1/models/org/other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "'fake'" in response.json()["error"]["message"]
