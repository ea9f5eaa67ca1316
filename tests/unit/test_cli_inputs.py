"""The words of a command become a job's input, or one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.inputs import read_file, read_input
from orchestrator.domain.errors import InvalidInput, PayloadTooLarge, UsageError

LIMIT = 1000


def test_text_file_and_json_values(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufeffä = b\n".encode())
    pairs = ["a=1", "b:=[1, null]", f"c=@{tmp_path / 'text'}", "d=", "e=x=y:=z", 'f:="@literal"', "g.h-i=1"]
    expected = {"a": "1", "b": [1, None], "c": "ä = b\n", "d": "", "e": "x=y:=z", "f": "@literal", "g.h-i": "1"}
    assert read_input(pairs, None, limit=LIMIT) == expected


def test_pairs_are_set_in_the_document(tmp_path: Path) -> None:
    (tmp_path / "doc.json").write_text('{"a": 1, "b": 2}')
    assert read_input(["b=3"], f"@{tmp_path / 'doc.json'}", limit=LIMIT) == {"a": 1, "b": "3"}
    assert read_input(None, "[1]", limit=LIMIT) == [1]
    assert read_input(None, None, limit=LIMIT) == {}


@pytest.mark.parametrize(
    ("pairs", "document", "says"),
    [
        (["novalue"], None, "'novalue' is not KEY=VALUE"),
        (["=x"], None, "is not KEY=VALUE"),
        (["a:=NaN"], None, "--input a: not JSON"),
        (["a:={"], None, "--input a: not JSON"),
        (["a:=" + "[" * 500 + "]" * 400], None, "--input a: JSON nested deeper than 100"),
        (["a=@missing.txt"], None, "--input a: missing.txt cannot be read: No such file"),
        (["a=1"], "[1]", "--input-json is not an object"),
        (None, "{'a': 1}", "--input-json: not JSON"),
    ],
)
def test_what_is_wrong_is_named(pairs: list[str] | None, document: str | None, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_input(pairs, document, limit=LIMIT)
    assert says in str(caught.value)
    assert caught.value.mend
    assert caught.value.exit_code == 2


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    with pytest.raises(PayloadTooLarge, match="104,857,600 bytes; the limit is 1,000"):
        read_file(path, "--input a", LIMIT)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"ok\xff")
    with pytest.raises(InvalidInput, match="not UTF-8 text \\(byte 2\\)"):
        read_file(path, "--input a", LIMIT)
