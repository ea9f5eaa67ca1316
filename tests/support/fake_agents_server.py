"""A real HTTP server on loopback that behaves as badly as agents do, and keeps a ledger of what it was asked.

The first segment of the path chooses the behaviour (``_BEHAVIOURS``); ``reply()`` scripts any other path.
"""

from __future__ import annotations

import asyncio
import json
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")

    @property
    def arguments(self) -> list[str]:
        return self.path.partition("?")[0].split("/")[2:]


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b"null"
    headers: dict[str, str] = field(default_factory=dict)


class FakeAgents:
    """Use as a context manager; all attributes may be read from the test's thread.

    ``calls[key]`` counts requests by idempotency key, ``effects[key]`` what ``/effect`` really did (once a key).
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.calls: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()
        self.connections = 0
        self.bytes_sent = 0
        self.in_flight = 0
        self.most_in_flight = 0
        #: Set when a request has been read / when a client went away before its answer was complete.
        self.arrived = threading.Event()
        self.left = threading.Event()
        self.url = ""
        self._replies: dict[str, list[Reply]] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fake-agents", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "the fake agents' server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def reply(self, path: str, *replies: Reply) -> None:
        """Answer ``path`` with these, one a request; the last one repeats."""
        self._replies[path] = list(replies)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            task = asyncio.ensure_future(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                self._note(request)
                try:
                    await self._answer(request, reader, writer)
                except (ConnectionError, ClientLeft):
                    self.left.set()
                    return
                finally:
                    self.in_flight -= 1
        except (ConnectionError, asyncio.IncompleteReadError):  # between two requests: an ordinary goodbye
            return
        finally:
            writer.transport.abort()

    def _note(self, request: Request) -> None:
        self.requests.append(request)
        self.calls[request.key] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.arrived.set()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = Exchange(self, request, reader, writer)
        replies = self._replies.get(request.path.partition("?")[0])
        if replies:
            await exchange.send(replies.pop(0) if len(replies) > 1 else replies[0])
            return
        behaviour = _BEHAVIOURS.get(request.path.partition("?")[0].split("/")[1], _unknown)
        await behaviour(exchange)


class ClientLeft(Exception):
    """The client closed its connection while the server was still busy with it."""


@dataclass
class Exchange:
    server: FakeAgents
    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, reply: Reply) -> None:
        body = b"" if reply.status in (204, 304) else reply.body
        await self.write(_head(reply.status, {"Content-Length": str(len(body)), **reply.headers}) + body)

    async def answer(self, value: Any) -> None:
        await self.send(Reply(body=json.dumps(value).encode()))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.server.bytes_sent += len(data)

    async def until_left(self) -> None:
        """Wait for the client to go away; it has nothing more to say."""
        await self.reader.read(1)
        raise ClientLeft


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = first.split(" ")
    return Request(method, path, headers, body)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", "Content-Type: application/json", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def gzip_of_zeros(mebibytes: int, *, members: int = 1) -> bytes:
    """A small body that decompresses to ``members`` times so many MiB of spaces."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    chunk = b" " * MEBIBYTE
    packed = b"".join([*(packer.compress(chunk) for _ in range(mebibytes)), packer.flush()])
    return packed * members


async def _echo(exchange: Exchange) -> None:
    request = exchange.request
    await exchange.answer({"input": request.json, "key": request.key, "calls": exchange.server.calls[request.key]})


async def _effect(exchange: Exchange) -> None:
    key = exchange.request.key
    exchange.server.effects[key] = 1
    await exchange.answer({"done": key})


async def _delay(exchange: Exchange) -> None:
    await asyncio.sleep(float(exchange.request.arguments[0]))
    await _echo(exchange)


async def _status(exchange: Exchange) -> None:
    """``/status/429/3``: the status, and a Retry-After if there is one."""
    status, *retry_after = exchange.request.arguments
    headers = {"Retry-After": retry_after[0]} if retry_after else {}
    await exchange.send(Reply(int(status), b'{"error": "as you wished"}', headers))


async def _hang(exchange: Exchange) -> None:
    await exchange.until_left()


async def _drip(exchange: Exchange) -> None:
    """One byte each 20 ms, for ever: no read timeout ever sees silence."""
    await exchange.write(_head(int((exchange.request.arguments or ["200"])[0]), {"Content-Length": "1000000"}))
    while True:
        await exchange.write(b" ")
        await asyncio.sleep(0.02)


async def _half(exchange: Exchange) -> None:
    await exchange.write(_head(200, {"Content-Length": "1000"}) + b'{"half": ')
    exchange.writer.close()


async def _cut(exchange: Exchange) -> None:
    exchange.writer.transport.abort()


async def _huge(exchange: Exchange) -> None:
    """``/huge/100``: so many MiB of JSON string; ``/huge/100/chunked`` does not say so beforehand."""
    mebibytes, *rest = exchange.request.arguments
    size = int(mebibytes) * MEBIBYTE
    await exchange.write(_head(200, {"Transfer-Encoding": "chunked"} if rest else {"Content-Length": str(size)}))
    for number in range(int(mebibytes)):
        chunk = b"a" * MEBIBYTE if number else b'"' + b"a" * (MEBIBYTE - 1)
        await exchange.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if rest else chunk)


async def _bomb(exchange: Exchange) -> None:
    mebibytes, members = (int(argument) for argument in exchange.request.arguments)
    await exchange.send(Reply(body=gzip_of_zeros(mebibytes, members=members), headers={"Content-Encoding": "gzip"}))


async def _unknown(exchange: Exchange) -> None:
    await exchange.send(Reply(404, b'{"error": "no such behaviour"}'))


_BEHAVIOURS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "echo": _echo,
    "effect": _effect,
    "delay": _delay,
    "status": _status,
    "hang": _hang,
    "drip": _drip,
    "half": _half,
    "cut": _cut,
    "huge": _huge,
    "bomb": _bomb,
}
