"""Every error code a person can meet has a page that says when it comes and what to do."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import OrchestratorError

for module in ("orchestrator.api.app", "orchestrator.engine.policy"):  # where the tree goes on
    importlib.import_module(module)

PAGES = Path(__file__).parents[2] / "docs/errors"


def tree(top: type[OrchestratorError]) -> Iterator[type[OrchestratorError]]:
    yield top
    for kind in top.__subclasses__():
        yield from tree(kind)


CODES = {
    kind.code: kind for kind in reversed(list(tree(OrchestratorError))) if kind.__module__.startswith("orchestrator.")
}


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_code_has_its_page(code: str) -> None:
    page = (PAGES / f"{code}.md").read_text()
    kind = CODES[code]
    assert page.startswith(f"# {code}\n")
    assert re.search(rf"HTTP (status )?{kind.status}\b", page)
    assert re.search(rf"exit (code )?{kind.exit_code}\b", page)
    assert "what to do" in page.lower()


def test_no_page_is_left_over() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(CODES)


def test_a_code_has_one_status() -> None:
    seen: dict[str, set[int]] = {}
    for kind in tree(OrchestratorError):
        if kind.__module__.startswith("orchestrator."):
            seen.setdefault(kind.code, set()).add(kind.status)
    shared = {code for code, statuses in seen.items() if len(statuses) > 1}
    assert shared == set()
