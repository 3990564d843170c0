"""The code is laid out as DESIGN says: imports go one way, modules say what they are for, files are in their place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agent", "replay", "vagrant")
LAYOUT = {
    "agent": ("capture", "stream", "http", "select", "monitor", "control", "discovery"),
    "replay": ("balancer", "compare", "derive", "judge"),
}
FORBIDDEN = {
    "replay": ("agent", "bpf", "vagrant", "tests"),
    "agent": ("vagrant", "tests"),
    "vagrant": ("agent", "replay", "bpf", "tests"),  # the lab judges the code from outside
}
LONGEST_MODULE_LINES = 400
LONGEST_FUNCTION_LINES = 60


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(module: ast.Module) -> Iterator[str]:
    """First part of every absolute import, also of those inside functions."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0]


ALL = [path for package in PACKAGES for path in modules(package)]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    wrong = [
        f"{name(path)} imports {target}"
        for path in modules(package)
        for target in imported(tree(path))
        if target in FORBIDDEN[package]
    ]
    assert wrong == []


def test_imports_are_absolute() -> None:
    wrong = [name(p) for p in ALL for n in ast.walk(tree(p)) if isinstance(n, ast.ImportFrom) and n.level > 0]
    assert wrong == []


def test_the_check_of_imports_sees_every_form() -> None:
    code = "import agent.cli as a\nfrom bpf import x\ndef f():\n    import os, tests.y\n    from replay.z import w\n"
    assert sorted(imported(ast.parse(code))) == ["agent", "bpf", "os", "replay", "tests"]


def test_every_module_says_what_it_is_for() -> None:
    assert [name(path) for path in ALL if path.read_text().strip() and not ast.get_docstring(tree(path))] == []


def test_modules_stay_short() -> None:
    assert [name(path) for path in ALL if len(path.read_text().splitlines()) > LONGEST_MODULE_LINES] == []


def test_functions_stay_short() -> None:
    long = [
        f"{name(path)}: {node.name}"
        for path in ALL
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("package", LAYOUT)
def test_packages_hold_only_what_the_design_names(package: str) -> None:
    folders = {path.parent.name for path in modules(package) if path.parent != ROOT / package}
    assert folders <= set(LAYOUT[package])


def test_the_root_has_what_the_design_names() -> None:
    files = ("pyproject.toml", "README.md", "Makefile", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".ci/run")
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert [folder for folder in ("bpf", "tests", "vagrant") if not (ROOT / folder).is_dir()] == []


def test_names_say_something() -> None:
    empty = {"utils", "util", "helpers", "manager", "common"}
    assert [name(path) for path in ALL if empty & set(path.stem.split("_"))] == []


def test_the_lock_pins_every_package_and_names_no_host() -> None:
    lines = (ROOT / "requirements.lock").read_text().split()
    assert lines
    assert [line for line in lines if line.count("==") != 1 or "/" in line or "@" in line] == []
