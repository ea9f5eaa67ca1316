"""The Celery result backend that makes chords meet in SQL.

It stores no results: a step's result is its checkpoint. It counts nothing either: the settle of a member decides the
join in its own transaction, and tells its verdict. Celery's tracer (or our pool, in its place) shows each verdict to
``on_chord_part_return``; when the settle chose to publish the body, the body is sent here. A duplicate member settles
nothing, so its verdict names no body; a body sent twice is claimed once.
"""

from __future__ import annotations

from typing import Any, NoReturn

from celery.backends.base import BaseBackend

from orchestrator.canvas.runtime import Verdict, runtime_of


class ChordBackend(BaseBackend):
    """``result_backend = "orchestrator.canvas.backend:ChordBackend"``."""

    def store_result(self, *_: Any, **__: Any) -> None:
        """Results are rows of ours; Celery's are dropped."""

    def ensure_chords_allowed(self) -> None:
        """They are."""

    def apply_chord(self, *_: Any, **__: Any) -> None:
        """Nothing to prepare: Celery publishes the members after this, and the join is a row already."""

    def on_chord_part_return(self, _request: Any, _state: str, result: Any, **_: Any) -> None:
        if isinstance(result, Verdict) and result.body is not None:
            runtime_of(self.app).runtime.dispatcher.publish([result.body])

    def as_uri(self, *_: Any, **__: Any) -> str:
        return "none (checkpoints are in SQL)"

    def _no_results(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("Results are not kept by Celery here: ask the job (`orchestrator jobs show`).")

    get_state = get_result = get_traceback = get_children = get_task_meta = wait_for = get_many = _no_results
