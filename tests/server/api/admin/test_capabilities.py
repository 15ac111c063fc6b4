from server.policy.policy import Policy


def test_capabilities_name_model_sites_and_limits(connect):
    answer = connect(policy=Policy(default_switch="safe", max_strength=3)).get("/v1/capabilities").json()
    assert answer["model"]["name"] == "fake"
    assert (answer["model"]["dtype"], answer["model"]["dtype_reason"]) == ("float32", "")
    assert answer["sites"] == [{"layer": layer, "point": "resid_post"} for layer in range(3)]
    assert answer["operations"] == ["switch", "add", "ablate", "clamp"]
    assert answer["default_switch"] == "safe"
    assert answer["limits"]["max_strength"] == 3
    assert answer["limits"]["context"] == 2048
