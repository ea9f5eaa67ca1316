"""How a run talks while it works: a live table on a terminal, plain lines on a pipe. Always on stderr."""

from __future__ import annotations

import io
import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO, cast

from orchestrator.cli.board import Board
from orchestrator.cli.ending import say

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.settings import Settings

_MARKS = {"pending": "·", "running": "▸", "succeeded": "✓", "skipped": "–", "failed": "✗", "cancelled": "✗"}
_COLOURS = {
    "pending": "dim",
    "running": "cyan",
    "succeeded": "green",
    "skipped": "dim",
    "failed": "red",
    "cancelled": "red",
}


class _Stderr(io.TextIOBase):
    """Whatever stderr is now: while the table is shown, rich writes lines above it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


def quiet_logs(settings: Settings) -> None:
    """Logs of a ``run``: on stderr, for people; from warnings up, unless ORCHESTRATOR_LOG_LEVEL says otherwise."""
    from orchestrator.telemetry.logs import configure, secrets_of

    level = settings.log_level if "log_level" in settings.model_fields_set else "warning"
    configure(form="console", level=level, secrets=secrets_of(settings), stream=cast(TextIO, _Stderr()))
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)  # it misses a host name in memory://


class Progress(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def told(self, sentence: str | None) -> None:
        """The board has taken in an event; ``sentence`` is what it says about it."""

    def tick(self, cost_usd: float, seconds: float) -> None:
        """Time has passed."""


def progress_for(board: Board) -> Progress:
    return Live(board) if sys.stderr.isatty() else Plain()


class Plain:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put away."""

    def told(self, sentence: str | None) -> None:
        if sentence:
            say(sentence)

    def tick(self, cost_usd: float, seconds: float) -> None:
        """A pipe is told only what happened."""


class Live:
    def __init__(self, board: Board) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._board = board
        self._totals = (0.0, 0.0)
        self._live = RichLive(console=Console(stderr=True), get_renderable=self._draw, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def told(self, sentence: str | None) -> None:
        """The table shows it."""

    def tick(self, cost_usd: float, seconds: float) -> None:
        self._totals = (cost_usd, seconds)

    def _draw(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        cost, seconds = self._totals
        table = Table(box=None, pad_edge=False, caption_justify="left")
        for heading in ("", "step", "done", "attempts", "seconds", ""):
            table.add_column(heading, justify="right" if heading in {"done", "attempts", "seconds"} else "left")
        for line in self._board.lines.values():
            row: list[Any] = [
                _MARKS[line.state],
                line.name,
                f"{min(line.done, line.width)}/{line.width}" if line.width is not None else "",
                str(line.attempts or ""),
                f"{line.seconds:.1f}" if line.seconds is not None else "",
                line.note[:80],
            ]
            table.add_row(*(Text(text) for text in row), style=_COLOURS[line.state])
        retries = f", {self._board.retries} repeated" if self._board.retries else ""
        table.caption = Text(f"{self._board.attempts} attempts{retries} · ${cost:.4f} · {seconds:.1f} s")
        return table
