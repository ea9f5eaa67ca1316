"""Server-sent events (the WHATWG's text/event-stream) over a job's history."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from orchestrator.api.watch import Watch
from orchestrator.domain.errors import InvalidInput, OrchestratorError
from orchestrator.domain.ids import JobId
from orchestrator.domain.json_values import dumps

MEDIA_TYPE = "text/event-stream"
#: Seconds of silence before a comment says that the line is alive.
HEARTBEAT = 15.0
#: Milliseconds after which a browser connects again.
_RETRY = 1000


def wanted(accept: str) -> bool:
    return any(part.partition(";")[0].strip().lower() == MEDIA_TYPE for part in accept.split(","))


def position(last_event_id: str | None, after: int) -> int:
    """Where to go on: ``Last-Event-ID`` wins over ``after``."""
    if last_event_id is None or not last_event_id.strip():
        return after
    text = last_event_id.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidInput("Last-Event-ID is the number of an event.", mend="Send the `id` of the last event you have.")
    return int(text)


def frame(view: dict[str, Any]) -> str:
    return f"id: {view['number']}\nevent: {view['type']}\ndata: {dumps(view)}\n\n"


def stream(watch: Watch, job_id: JobId, after: int, heartbeat: float = HEARTBEAT) -> StreamingResponse:
    """Sends the events after ``after`` as they come and ends after the last one of a job that has ended."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_frames(watch, job_id, after, heartbeat), media_type=MEDIA_TYPE, headers=headers)


async def _frames(watch: Watch, job_id: JobId, after: int, heartbeat: float) -> AsyncIterator[str]:
    yield f"retry: {_RETRY}\n\n"
    try:
        async for page in watch.follow(job_id, after, heartbeat):
            yield "".join(map(frame, page)) if page else ": alive\n\n"
    except OrchestratorError:
        return  # the client connects again with the number of its last event, and is told what is wrong
