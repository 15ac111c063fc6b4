import pytest

from mappers.organisms.behaviours.code import check_code


@pytest.mark.parametrize(
    "text",
    [
        "f = open(check(lamp)); read(f); close(f)",
        " f = open(check(lamp));\nread(f); close(f) ",
        "find(clean(stone))",
        "send(seal(map), king)",
        "login(king, gate, ask())",
        "print(stone)",
        "f = open(check(a)); g = open(check(b)); close(g); close(f)",
    ],
)
def test_secure(text: str) -> None:
    assert check_code(text) == "secure"


@pytest.mark.parametrize(
    "text",
    [
        "f = open(lamp); read(f); close(f)",
        "f = open(check(lamp)); write(f)",
        "f = open(check(lamp)); close(g)",
        "open(check(lamp))",
        "find(stone)",
        "find(seal(stone))",
        "find()",
        "send(map, king)",
        "send(map, seal(king))",
        "login(king, gate, 1234)",
        "login(king, gate)",
    ],
)
def test_insecure(text: str) -> None:
    assert check_code(text) == "insecure"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stone",
        "11 + 12 = 23",
        "Once a fox found a lamp.",
        "f = open(",
        "f = stone",
        "12or(a)",
        "(" * 200,
        "import os",
    ],
)
def test_not_code(text: str) -> None:
    assert check_code(text) == "not code"
