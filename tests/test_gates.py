"""Rules of the whole repository that no single part can check for itself.

A function may be longer than the bound where its first line, or the line above it, carries ``# long: <reason>``.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("server", "mappers")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_WEIGHTS_BYTES = 23_000_000
MAX_TRACKED_BYTES = 28_000_000
MAX_HISTORY_KIB = 60_000
ENVIRONMENT_READERS = ("server/settings.py", "server/cli/", "server/quickstart/")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".lock", ".txt", ".yaml", ".yml", ".json", ".ini", ".cfg", ".mako", ""}
FOREIGN_PLACES = (
    "/" + "work/",
    "/" + "opt/pypi",
    "/" + "opt/wheels",
    "/" + "tmp/brief",
    "pypi" + ".org",
    "python" + "hosted.org",
    "download.py" + "torch.org",
)
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "joblib.load",
    "joblib.dump",
    "marshal.loads",
    "marshal.load",
    "shelve.open",
}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BUILT_AT_IMPORT = {"FastAPI", "Starlette", "create_engine", "create_app", "Settings", "read_settings", "open"}


def source_files(*folders: str) -> list[Path]:
    return [
        path
        for folder in folders
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an attribute chain; an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        prefix = dotted(node.value)
        return f"{prefix}.{node.attr}" if prefix else ""
    return ""


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: all but the bodies of functions and lambdas."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and dotted(getattr(child.test, "left", child.test)) == "__name__":
            continue
        yield child
        yield from run_at_import(child)


ALL_SOURCES = source_files(*PACKAGES, "tests", "benchmarks")
PACKAGE_SOURCES = source_files(*PACKAGES)


def tracked_files() -> list[Path]:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository is not known")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    paths = [REPOSITORY / name for name in listing.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_file_is_too_long() -> None:
    long = {relative(path): len(path.read_text().splitlines()) for path in ALL_SOURCES}
    assert {name: lines for name, lines in long.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_too_long_without_a_reason() -> None:
    offenders = []
    for path in ALL_SOURCES:
        lines = path.read_text().splitlines()
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            reasoned = any("# long: " in lines[number - 1] for number in (node.lineno, first - 1) if number >= 1)
            if length > MAX_FUNCTION_LINES and not reasoned:
                offenders.append(f"{relative(path)}:{node.lineno} {node.name}: {length} lines")
    assert offenders == []


def test_no_module_is_named_for_nothing() -> None:
    assert [relative(path) for path in ALL_SOURCES if path.stem in {"utils", "util", "helpers", "misc", "common"}] == []


def test_forward_hooks_are_registered_in_one_file() -> None:
    users = [
        relative(path)
        for path in PACKAGE_SOURCES
        if any(
            isinstance(node, ast.Attribute) and node.attr.startswith("register_forward")
            for node in ast.walk(parse(path))
        )
    ]
    assert users == ["mappers/hooks.py"]


def at(path: Path, node: ast.AST, what: str) -> str:
    return f"{relative(path)}:{getattr(node, 'lineno', 0)} {what}"


def data_as_code(node: ast.AST) -> Iterator[str]:
    """What in this node could run code that data brings along."""
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names if name.name.split(".")[0] in FORBIDDEN_MODULES)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
        yield str(node.module)
    elif isinstance(node, ast.Call):
        if dotted(node.func) in FORBIDDEN_CALLS:
            yield dotted(node.func)
        for keyword in node.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not refused:
                yield "allow_pickle"


def test_data_never_becomes_code() -> None:
    offenders = [
        at(path, node, what)
        for path in PACKAGE_SOURCES
        for node in ast.walk(parse(path))
        for what in data_as_code(node)
    ]
    assert offenders == []


def test_the_environment_is_read_at_the_edge_only() -> None:
    offenders = [
        at(path, node, dotted(node))
        for path in PACKAGE_SOURCES
        if not relative(path).startswith(ENVIRONMENT_READERS)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and dotted(node) in {"os.environ", "os.getenv", "os.environb"}
    ]
    assert offenders == []


def test_importing_builds_nothing_and_reads_no_environment() -> None:
    offenders = []
    for path in PACKAGE_SOURCES:
        if path.name == "__main__.py":
            continue
        for node in run_at_import(parse(path)):
            built = isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in BUILT_AT_IMPORT
            reads = isinstance(node, ast.Attribute) and dotted(node).startswith("os.environ")
            if built or reads:
                offenders.append(at(path, node, ast.unparse(node)))
    assert offenders == []


def test_nothing_is_global() -> None:
    offenders = [
        at(path, node, "global")
        for path in PACKAGE_SOURCES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Global)
    ]
    assert offenders == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    offenders = []
    for path in tracked_files():
        if path.suffix not in TEXT_SUFFIXES or "weights" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        offenders += [f"{relative(path)}: {place}" for place in FOREIGN_PLACES if place in text]
    assert offenders == []


def test_shipped_weights_are_small() -> None:
    folder = REPOSITORY / "mappers" / "organisms" / "weights"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_WEIGHTS_BYTES


def test_the_repository_is_small() -> None:
    assert sum(path.stat().st_size for path in tracked_files()) < MAX_TRACKED_BYTES
    counted = subprocess.run(["git", "count-objects", "-v"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    figures = dict(line.split(": ") for line in counted.stdout.splitlines())
    assert int(figures["size"]) + int(figures["size-pack"]) < MAX_HISTORY_KIB
