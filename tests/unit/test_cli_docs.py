"""docs/reference/cli.md names every command and every option there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from orchestrator.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


ALL = dict(commands(get_command(app)))


@pytest.mark.parametrize("name", ALL)
def test_the_reference_names_it(name: str) -> None:
    assert f"`{name}" in PAGE or f"`orchestrator {name}" in PAGE
    for parameter in ALL[name].params:
        if parameter.param_type_name == "option" and not parameter.hidden and "--json" not in parameter.opts:
            assert any(option in PAGE for option in parameter.opts), parameter.opts


@pytest.mark.parametrize("name", ALL)
def test_its_help_begins_with_a_short_sentence(name: str) -> None:
    first = (ALL[name].help or "").partition(". ")[0]
    assert 8 < len(first) <= 75, first
