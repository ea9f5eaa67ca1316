"""Data for people and for programs."""

from __future__ import annotations

import json

import pytest

from orchestrator.cli.ending import explain, explain_bug
from orchestrator.cli.parent import LONGEST_PAUSE, pause
from orchestrator.cli.printing import cell, facts, put, table, when
from orchestrator.cli.run import output_text
from orchestrator.domain.errors import ConfigError, DefinitionError, NotFound, Problem


def test_a_table_is_aligned_and_short() -> None:
    rows = [{"id": "a", "created_at": 0.0, "note": "x" * 200}, {"id": "long-id", "created_at": None, "note": {"k": 1}}]
    lines = table(rows, ["id", "created_at", "note"]).splitlines()
    assert lines[0].split() == ["ID", "CREATED", "NOTE"]
    assert lines[1].startswith("a        1970-01-01 00:00:00Z  xxx")
    assert lines[1].endswith("…")
    assert lines[2] == 'long-id  -                     {"k": 1}'
    assert table([], ["id"]) == ""


def test_facts_leave_out_what_is_empty() -> None:
    shown = facts({"id": "a", "tags": {}, "output": {"x": 1}, "failure": None}, ["id", "tags", "output", "failure"])
    assert shown == 'id:     a\noutput:\n{\n  "x": 1\n}'


def test_odd_values_do_not_break_the_table() -> None:
    assert cell("message", "two\nlines") == "two lines"
    assert when("soon") == "soon"
    assert when(1e20) == "1e+20"


def test_json_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    put({"a": "ä"}, True, lambda _: "for people")
    put({"a": 1}, False, lambda _: "for people")
    put([], False, lambda rows: table(rows, ["id"]))
    first, _, rest = capsys.readouterr().out.partition("}\n")
    assert json.loads(first + "}") == {"a": "ä"}
    assert rest == "for people\n"


def test_markdown_is_printed_unless_json_is_asked_for() -> None:
    output = {"markdown": "# Title\n", "json": {}}
    assert output_text(output, as_json=False) == "# Title"
    assert json.loads(output_text(output, as_json=True)) == output
    assert json.loads(output_text({"markdown": 1}, as_json=False)) == {"markdown": 1}
    assert output_text("text", as_json=False) == '"text"'


def test_an_error_is_its_code_what_and_the_mend(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(NotFound("no job x.", mend="List them.")) == 3
    assert explain(ConfigError("PORT is wrong.")) == 78
    assert explain(DefinitionError([Problem("one", line=1), Problem("two", line=2)], file="f.yaml")) == 2
    assert explain_bug(ValueError("odd")) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error[not_found]: no job x. List them.",
        "error[config]: PORT is wrong.",
        "error[invalid_definition]: f.yaml: line 1: one",
        "error[invalid_definition]: f.yaml: line 2: two",
        "error[bug]: ValueError: odd This is a fault of ours: run the command again with --debug.",
    ]


def test_a_crash_loop_slows_down_and_a_single_crash_does_not() -> None:
    assert [pause(n) for n in range(4)] == [0, 0, 1, 2]
    assert pause(50) == LONGEST_PAUSE
