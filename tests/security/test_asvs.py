"""The table of OWASP ASVS 5.0.0 is complete, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEVEL_1 = """
V6.1.1 V6.2.1 V6.2.2 V6.2.3 V6.2.4 V6.2.5 V6.2.6 V6.2.7 V6.2.8 V6.3.1 V6.3.2 V6.4.1 V6.4.2 V7.2.1 V7.2.2 V7.2.3
V7.2.4 V7.4.1 V7.4.2 V8.1.1 V8.2.1 V8.2.2 V8.3.1 V9.1.1 V9.1.2 V9.1.3 V9.2.1 V10.4.1 V10.4.2 V10.4.3 V10.4.4
V10.4.5 V14.2.1 V14.3.1
"""
LEVEL_2 = """
V6.1.2 V6.1.3 V6.2.9 V6.2.10 V6.2.11 V6.2.12 V6.3.3 V6.3.4 V6.4.3 V6.4.4 V6.5.1 V6.5.2 V6.5.3 V6.5.4 V6.5.5
V6.6.1 V6.6.2 V6.6.3 V6.8.1 V6.8.2 V6.8.3 V6.8.4 V7.1.1 V7.1.2 V7.1.3 V7.3.1 V7.3.2 V7.4.3 V7.4.4 V7.4.5 V7.5.1
V7.5.2 V7.6.1 V7.6.2 V8.1.2 V8.2.3 V8.4.1 V9.2.2 V9.2.3 V9.2.4 V10.1.1 V10.1.2 V10.2.1 V10.2.2 V10.3.1 V10.3.2
V10.3.3 V10.3.4 V10.4.6 V10.4.7 V10.4.8 V10.4.9 V10.4.10 V10.4.11 V10.5.1 V10.5.2 V10.5.3 V10.5.4 V10.5.5
V10.6.1 V10.6.2 V10.7.1 V10.7.2 V10.7.3 V14.1.1 V14.1.2 V14.2.2 V14.2.3 V14.2.4 V14.3.2 V14.3.3 V16.1.1 V16.2.1
V16.2.2 V16.2.3 V16.2.4 V16.2.5 V16.3.1 V16.3.2 V16.3.3 V16.3.4 V16.4.1 V16.4.2 V16.4.3 V16.5.1 V16.5.2 V16.5.3
"""
"""The ids of the standard's own list, of the chapters V6 to V10, V14 and V16."""

ROW = re.compile(r"^\| (V[0-9.]+) \| ([12]) \| (.+?) \| (Tested by|Application:|Not applicable:) (.+) \|$")
NODE = re.compile(r"`(tests/[a-z_/]+\.py::[a-z_]+)`")


def table() -> list[tuple[str, int, str, str]]:
    lines = (ROOT / "docs/security/asvs.md").read_text(encoding="utf-8").splitlines()
    found = [(line, ROW.match(line)) for line in lines if line.startswith("| V")]
    assert [line for line, row in found if row is None] == [], "rows that say nothing that is understood"
    return [(row[1], int(row[2]), row[4], row[5]) for _, row in found if row is not None]


@cache
def named_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def exists(node: str) -> bool:
    path, _, name = node.partition("::")
    return (ROOT / path).is_file() and name in named_in(ROOT / path)


def test_each_requirement_has_one_row_with_its_level() -> None:
    expected = [(one, level) for level, ids in ((1, LEVEL_1), (2, LEVEL_2)) for one in ids.split()]
    assert len(expected) == 121
    assert sorted((one, level) for one, level, _, _ in table()) == sorted(expected)


def test_each_test_that_is_named_exists() -> None:
    named = [(one, node) for one, _, _, said in table() for node in NODE.findall(said)]
    assert [(one, node) for one, node in named if not exists(node)] == []


def test_no_row_of_the_librarys_own_is_without_a_test() -> None:
    for one, _, kind, said in table():
        named = NODE.findall(said)
        assert bool(named) is (kind == "Tested by"), f"{one} names {len(named)} tests"
        assert said.count("::") == len(named), f"{one} names a test that cannot be understood"
        if kind != "Tested by":
            assert len(said) > 20, f"{one} says neither what to do nor why"


@pytest.mark.parametrize("node", ["tests/security/test_asvs.py::test_that_is_not_there", "tests/no_file.py::test_x"])
def test_a_test_that_is_missing_is_found(node: str) -> None:
    assert not exists(node)
