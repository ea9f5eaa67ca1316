"""docs/checklist.md says no more, and no less, than the tests show."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/checklist.md"
#: How many rows each letter has; S is written S1r, because S1 is a row of the fault matrix.
LETTERS = "ABCDEFGHIJKLMNOPQRSTW"
SIZES = dict(zip(LETTERS, (16, 15, 9, 6, 11, 9, 5, 4, 8, 7, 7, 6, 15, 2, 5, 6, 3, 2, 4, 4, 7), strict=True))
ROWS = [f"{letter}{number}{'r' * (letter == 'S')}" for letter, size in SIZES.items() for number in range(1, size + 1)]
#: Ids that mean something else as well, so that a docstring with one of them need not mean the checklist.
PROMISES = {f"P{number}" for number in range(1, 14)}
INVARIANTS = {f"I{number}" for number in range(1, 12)}
FAULTS = set("K1 K2 K3 K4 K5 K6 Z1 L1 R1 R2 R3 D1 D3 D4 D7 M1 M2 M3 M4 A1 A2 A3 A4 A6 B1 C1 O1 O3 U1 U2 S1".split())
ID = re.compile(r"\b[A-Z]\d+r?\b")
LINE = re.compile(r"\| ([A-Z]\d+r?) \| (.+) \| (.+) \|")
STATE = re.compile(r"not yet|(?:done|partly \([^()]+\)): (`[^`]+`(?:, `[^`]+`)*)")


@dataclass(frozen=True)
class Row:
    id: str
    state: str

    @property
    def tests(self) -> list[str]:
        """``path::function`` each."""
        return re.findall(r"`([^`]+::[^`]+)`", self.state)


def read(text: str) -> list[Row]:
    lines = [line for line in text.splitlines() if re.match(r"\| [A-Z]\d", line)]
    found = [LINE.fullmatch(line) for line in lines]
    broken = [line for line, match in zip(lines, found, strict=True) if match is None]
    assert not broken, f"not | id | requirement | state |: {broken}"
    return [Row(match[1], match[3]) for match in found if match]


@cache
def docstrings(path: Path) -> dict[str, str]:
    """A test file's functions with their docstrings, the module's own before each; the module's alone as ``""``."""
    tree = ast.parse(path.read_text())
    head = ast.get_docstring(tree) or ""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {"": head, **{node.name: f"{head}\n{ast.get_docstring(node) or ''}" for node in functions}}


def fault(row: Row, root: Path = REPOSITORY) -> str | None:
    """What is wrong with a row's state."""
    if STATE.fullmatch(row.state) is None:
        return "its state is neither `not yet`, nor `done` or `partly (what is missing)` with its tests"
    for test in row.tests:
        name, _, function = test.partition("::")
        if not (root / name).is_file():
            return f"{name} does not exist"
        found = docstrings(root / name)
        if function not in found or not function.startswith("test_"):
            return f"{name} has no test {function}"
        if row.id not in ID.findall(found[function]):
            return f"the docstring of {test} does not name it"
    return None


rows = read(PAGE.read_text())


def test_every_row_is_there_once_and_in_order() -> None:
    assert [row.id for row in rows] == ROWS


@pytest.mark.parametrize("row", rows, ids=lambda row: row.id)
def test_what_is_shown_is_shown_by_a_test_that_names_it(row: Row) -> None:
    assert fault(row) is None


def test_no_test_names_a_row_that_is_not_yet() -> None:
    """A test that shows a row is worth a line there."""
    waiting = {row.id for row in rows if row.state == "not yet"} - PROMISES - INVARIANTS - FAULTS
    named = [
        f"{path.relative_to(REPOSITORY)}::{function} names {', '.join(sorted(found))}"
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        for function, text in docstrings(path).items()
        if (found := waiting & set(ID.findall(text)))
    ]
    assert named == []


GOOD = "tests/unit/test_checklist.py::test_the_check_sees_what_is_wrong"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("not yet", None),
        (f"done: `{GOOD}`", None),
        (f"partly (half of it): `{GOOD}`, `{GOOD}`", None),
        ("done", "neither"),
        ("perhaps", "neither"),
        (f"partly: `{GOOD}`", "neither"),
        ("done: tests/unit/test_checklist.py", "neither"),
        ("done: `tests/unit/test_nowhere.py::test_x`", "does not exist"),
        ("done: `tests/unit/test_checklist.py::test_x`", "has no test"),
        ("done: `tests/unit/test_checklist.py::read`", "has no test"),
        ("done: `tests/unit/test_checklist.py::test_every_row_is_there_once_and_in_order`", "does not name it"),
    ],
)
def test_the_check_sees_what_is_wrong(state: str, says: str | None) -> None:
    """Z99 is no row; this docstring names it, and no other does."""
    found = fault(Row("Z99", state))
    assert (found is None) if says is None else (found is not None and says in found)
