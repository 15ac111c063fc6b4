import json

from server.evaluation.report import Demand, Plot, Section, Table, write_report


def _draw(figure):
    figure.subplots().plot([0, 1], [1, 0])


def test_a_report_has_the_demands_first_then_each_section(tmp_path):
    table = Table("Rates", ("pair", "mapped"), [("a -> b", "98 %")], "A note.")
    sections = [
        Section("One", "Text of one.", [table], [Demand("x", ">= 1", "0.5", False)], summary={"one": {"x": 0.5}}),
        Section("Two", "Text of two.", plots=[Plot("two.png", "A curve", _draw)], summary={"two": 2}),
    ]
    summary = write_report(tmp_path, "Title", {"device": "cpu"}, sections, {"one": [{"seed": 0}]})
    assert summary == {"one": {"x": 0.5}, "two": 2}
    page = (tmp_path / "report.md").read_text()
    order = [
        "# Title",
        "* device: cpu",
        "| x | >= 1 | 0.5 | **no** |",
        "## One",
        "| a -> b | 98 % |",
        "A note.",
        "## Two",
    ]
    assert sorted(order, key=page.index) == order
    assert "![A curve](two.png)" in page
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["summary"] == summary
    assert content["demands"] == [{"what": "x", "at_least": ">= 1", "measured": "0.5", "met": False}]
    assert content["cells"] == {"one": [{"seed": 0}]}
