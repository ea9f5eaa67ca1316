"""How a request with a body is read: first who asks, then at most so many bytes, then JSON as we know it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.house import House, house_of
from orchestrator.api.problems import UnsupportedMediaType
from orchestrator.domain.errors import InvalidInput, PayloadTooLarge
from orchestrator.domain.json_values import dumps, loads

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
#: Above so many bytes JSON is read in a thread: the loop has others to serve.
_BIG = 64 * 1024


class Route(APIRoute):
    """A route behind the door. Raises in this order: 401, 422 (NUL), 415, 413, 422."""

    def get_route_handler(self) -> Handler:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            house = house_of(request)
            request.state.caller = await house.door.caller(request)
            if "\0" in request.url.path or b"%00" in request.scope.get("query_string", b""):
                raise InvalidInput("NUL is no character here.")
            if self.body_field is not None:
                request = await _read_json(request, house)
            return await inner(request)

        return handle


class _ReadRequest(Request):
    """A request whose body has been read and parsed."""

    def __init__(self, request: Request, raw: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._raw = raw
        self._value = value

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._value


async def _read_json(request: Request, house: House) -> Request:
    kind = media_type(request)
    if kind not in ("", "application/json"):
        raise UnsupportedMediaType(f"the body is {kind}.", mend="Send Content-Type: application/json.")
    raw = await read(request, house.settings.max_body_bytes)
    if not raw:
        return _ReadRequest(request, raw, None)
    if not kind:
        raise UnsupportedMediaType("the body has no Content-Type.", mend="Send Content-Type: application/json.")
    value = await house.threads.run(loads, raw) if len(raw) > _BIG else loads(raw)
    return _ReadRequest(request, raw, value)


async def read(request: Request, limit: int) -> bytes:
    """The body. Raises ``PayloadTooLarge`` as soon as it is longer than ``limit`` bytes, whatever its header said."""
    declared = request.headers.get("content-length", "")
    chunks: list[bytes] = []
    size = int(declared) if declared.isdigit() and int(declared) > limit else 0
    if size == 0:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
    if size > limit:
        raise PayloadTooLarge(
            f"the body is longer than {limit} bytes.", mend="Send a reference, or raise ORCHESTRATOR_MAX_BODY_BYTES."
        )
    return b"".join(chunks)


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


class Json(Response):
    """An answer, as our own JSON."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(content, status_code, {"Cache-Control": "no-store", **(headers or {})})

    def render(self, content: Any) -> bytes:
        return dumps(content).encode()
