"""Where the time goes: stacks in the form that viewers read, shares by module."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import bell, flame


def test_where_the_time_goes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """M12: a profile of the real engine, before anything is made quicker."""
    monkeypatch.setenv(bell.VARIABLE, "0")  # put back afterwards: the sampling sets its own
    stacks = flame.sample(10, tmp_path)
    assert stacks.total() > 0
    assert any("orchestrator/engine/writer.py:_run" in stack for stack in stacks)
    shares = flame.by_module(stacks)
    assert shares.total() == stacks.total()
    assert "orchestrator/store/database.py" in shares


def test_what_a_library_spends_belongs_to_who_called_it() -> None:
    stacks = Counter(
        {"a;orchestrator/engine/settle.py:settle;base.py:execute": 3, "a;bench/bell.py:ring": 1, "b;x.py:y": 2}
    )
    assert flame.by_module(stacks) == {"orchestrator/engine/settle.py": 3, "bench/bell.py": 1, "libraries alone": 2}


def test_a_stack_is_one_word_of_frames() -> None:
    stack = flame.stack_of(sys._getframe())
    assert re.fullmatch(r"[^;\n]+(;[^;\n]+)*", stack)
    assert stack.endswith("tests/unit/test_flame.py:test_a_stack_is_one_word_of_frames")


@pytest.mark.parametrize(("arguments", "said"), [(["--jobs", "0"], "between 1 and 1,000"), (["--fast"], "--fast")])
def test_a_wrong_option_says_what_to_write(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        flame.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
