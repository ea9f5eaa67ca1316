"""Posts webhook messages: no redirect followed, nothing of the environment trusted, an answer's body hardly read."""

from __future__ import annotations

import asyncio
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from orchestrator import __version__
from orchestrator.clock import Clock
from orchestrator.ports import Message, Reply

#: Of an answer's body so much is read, so that its connection can be used again; of a longer one it is closed.
BODY_BYTES = 4096


class HttpSender:
    """``at_once``: connections at the same time. Used from one event loop."""

    def __init__(self, clock: Clock, at_once: int) -> None:
        self._clock = clock
        self._http = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once, keepalive_expiry=30),
            headers={"User-Agent": f"orchestrator/{__version__}", "Accept-Encoding": "identity"},
        )

    async def send(self, message: Message, seconds: float) -> Reply:
        """See ``ports.Sender``."""
        try:
            async with asyncio.timeout(seconds):
                return await self._post(message, seconds)
        except (TimeoutError, httpx.TimeoutException):
            return Reply(None, f"it did not answer within {seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # ValueError: a host no DNS can have
            return Reply(None, f"{type(error).__name__}: {error}"[:300])

    async def _post(self, message: Message, seconds: float) -> Reply:
        async with self._http.stream(
            "POST", message.url, content=message.body, headers=message.headers, timeout=seconds
        ) as answer:
            reply = Reply(answer.status_code, "", self._retry_after(answer.headers.get("Retry-After")))
            await _drain(answer)
            self._http.cookies.clear()
            return reply

    def _retry_after(self, text: str | None) -> float | None:
        """Seconds from now; it may be a date. What cannot be read is not said."""
        if text is None:
            return None
        if text.strip().isdigit():
            return float(text.strip()[:9])
        try:
            when = parsedate_to_datetime(text)
        except ValueError:
            return None
        return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - self._clock.now())

    async def close(self) -> None:
        await self._http.aclose()


async def _drain(answer: httpx.Response) -> None:
    """The status is known; a body that breaks off or never ends does not change it."""
    read = 0
    try:
        async with asyncio.timeout(1.0):
            async for piece in answer.aiter_raw():
                read += len(piece)
                if read > BODY_BYTES:
                    return
    except (TimeoutError, httpx.HTTPError):
        return
