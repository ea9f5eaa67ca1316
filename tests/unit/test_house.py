"""The shape of the house: layers, sizes, and words that are banned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PRODUCT = ("orchestrator", "workers")
#: Files that may be longer than LINES, each with its reason.
LINES = 400
LONG: dict[str, str] = {
    "orchestrator/store/tables.py": "one list of tables, looked up by name",
    "tests/conformance/test_retention.py": "one case for each reader that keeps a job or a payload",
}
#: The one file that may touch time and ids.
CLOCK = "orchestrator/clock.py"
#: Wherever they stand. `time` as a module is banned by its functions.
BANNED_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve"}
BANNED_CALLS = {"eval", "exec", "__import__"}
BANNED_TIME = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "sleep"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
    ("uuid", "uuid1"),
    ("uuid", "uuid4"),
}
VAGUE = re.compile(r"(^|_)(utils?|helpers?|common|misc|managers?)(_|$)")


def sources(*roots: str) -> list[Path]:
    return sorted(path for root in roots for path in (REPOSITORY / root).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


each_source = pytest.mark.parametrize("path", sources(*PRODUCT), ids=name)


def banned(tree: ast.AST, *, clock: bool) -> Iterator[str]:
    """What ``tree`` uses and must not, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"line {node.lineno}: import {a.name}" for a in names if a.name in BANNED_MODULES)
            case ast.ImportFrom(module=module, names=names):
                if module in BANNED_MODULES:
                    yield f"line {node.lineno}: from {module} import"
                if not clock:
                    yield from (
                        f"line {node.lineno}: {module}.{a.name}" for a in names if (module, a.name) in BANNED_TIME
                    )
            case ast.Call(func=ast.Name(id=called)) if called in BANNED_CALLS:
                yield f"line {node.lineno}: {called}()"
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=attribute) if not clock:
                if (owner, attribute) in BANNED_TIME:
                    yield f"line {node.lineno}: {owner}.{attribute}"


@each_source
def test_nothing_banned_is_used(path: Path) -> None:
    assert list(banned(ast.parse(path.read_text()), clock=name(path) == CLOCK)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec('1')",
        "import time\ntime.sleep(1)",
        "from time import time",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.now()",
        "f = time.time",
        "import uuid\nuuid.uuid4()",
        "from uuid import uuid4",
    ],
)
def test_the_check_sees_what_is_banned(code: str) -> None:
    assert list(banned(ast.parse(code), clock=False))


def test_the_check_lets_the_rest_pass() -> None:
    code = "import time\ntime.monotonic()\nself.clock.sleep(1)\nmodel.eval()\nclock.now()"
    assert list(banned(ast.parse(code), clock=False)) == []
    assert list(banned(ast.parse("import time\ntime.time()"), clock=True)) == []


def test_files_are_short_or_say_why() -> None:
    long = {name(path): lines for path in sources(*PRODUCT, "tests") if (lines := path.read_text().count("\n")) > LINES}
    assert long.keys() == LONG.keys(), f"split them, or give the reason in LONG: {long}"


@each_source
def test_names_say_what_is_inside(path: Path) -> None:
    assert not VAGUE.search(path.stem), f"{name(path)}: name it after what it does"


def test_no_module_is_empty_of_words() -> None:
    silent = [
        name(path)
        for path in sources(*PRODUCT)
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == [], "say at the top what the module promises"


def test_imports_run_downward_only() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_ignored_rule_has_its_reason() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    ruff = tomllib.loads(text)["tool"]["ruff"]["lint"]
    assert ruff["ignore"]
    for rule in ruff["ignore"]:
        assert re.search(rf'^\s*"{rule}",\s*# \S+', text, re.MULTILINE), f"{rule}: give the reason behind it"
    for place in ruff["per-file-ignores"]:
        assert re.search(rf'^"{re.escape(place)}" = \[.*\]\s*# \S+', text, re.MULTILINE), f"{place}: give the reason"
