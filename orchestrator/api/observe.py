"""Around every request: how long it took, and a last line of defence against bugs."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api import problems
from orchestrator.clock import Clock
from orchestrator.telemetry.metrics import Meters

log = logging.getLogger("orchestrator.api")

#: The answer to a request that asked to be kept waiting: its time is the job's, not ours.
_WAITED = b"preference-applied"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observe:
    """ASGI middleware. Route and method are from closed lists, so that no caller can make series."""

    def __init__(self, app: ASGIApp, meters: Meters, clock: Clock) -> None:
        self._app = app
        self._meters = meters
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock.perf()
        status: int | None = None

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                waited = any(name.lower() == _WAITED for name, _ in message.get("headers", ()))
                self._record(scope, status, self._clock.perf() - started, waited=waited)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            log.exception("api.bug", extra={"path": scope["path"]})
            if status is not None:
                raise  # half an answer is out: cutting the connection is the only honest end
            await problems.bug(scope["path"])(scope, receive, observed)

    def _record(self, scope: Scope, status: int, seconds: float, *, waited: bool) -> None:
        route = getattr(scope.get("route"), "path", "none") + (" wait" if waited else "")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._meters.request_answered(route, method, status, seconds)
        extra = {"route": route, "method": method, "status": status, "ms": round(seconds * 1000, 1)}
        log.debug("http.answered", extra=extra)
