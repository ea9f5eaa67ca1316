"""The HTTP client of agents: httpx's interface over aiohttp's connections.

Why aiohttp beneath: one ``httpx.AsyncClient`` on its own transport collapses at 200 calls in flight, aiohttp keeps up
at 1,000. Its connector is not limited here: the worker's slots are the limit, and a call that waited for a connection
would spend its timeout on nothing.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy

import aiohttp
import httpx
from yarl import URL

from orchestrator import __version__
from workers.agents.body import BodyTooLarge, BodyUndecodable, read_bounded

#: Of an answer that is an error anyway: enough to show, and no reason to wait long.
ERROR_BODY_BYTES = 8192
ERROR_BODY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back. ``body`` is decoded; of a status of 300 and above it may be cut, or empty."""

    status: int
    headers: httpx.Headers
    body: bytes


class AgentHttp:
    """POSTs to agents: no redirect followed, no cookie kept, no proxy or netrc of the environment trusted, no retry.

    Used from one event loop only. ``max_body_bytes`` bounds an answer, before and after decompression.
    """

    def __init__(self, *, max_body_bytes: int, connect_timeout: float = 10.0) -> None:
        self._max_body_bytes = max_body_bytes
        self._connect_timeout = connect_timeout
        self._client = httpx.AsyncClient(
            transport=AiohttpTransport(),
            trust_env=False,
            follow_redirects=False,
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": f"orchestrator/{__version__}", "Accept-Encoding": "gzip"},
        )

    async def post(self, url: httpx.URL, body: bytes, headers: Mapping[str, str], seconds: float) -> HttpAnswer:
        """The whole exchange within ``seconds``, body included.

        Raises ``TimeoutError``, httpx's transport errors, ``BodyTooLarge`` or ``BodyUndecodable``; whichever it is, or
        if the call is cancelled, the connection is closed.
        """
        limits = httpx.Timeout(seconds, connect=min(seconds, self._connect_timeout))
        async with (
            asyncio.timeout(seconds),
            self._client.stream("POST", url, content=body, headers=dict(headers), timeout=limits) as response,
        ):
            read = self._read_error if response.status_code >= 300 else self._read
            return HttpAnswer(response.status_code, response.headers, await read(response))

    async def _read(self, response: httpx.Response) -> bytes:
        encoding = response.headers.get("Content-Encoding", "")
        return await read_bounded(response.aiter_raw(), encoding, self._max_body_bytes)

    async def _read_error(self, response: httpx.Response) -> bytes:
        """What can be had of an error's body quickly: the status is known, and its text must not cost it."""
        body = bytearray()
        try:
            async with asyncio.timeout(ERROR_BODY_SECONDS):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) >= ERROR_BODY_BYTES:
                        break
        except (TimeoutError, httpx.TransportError):
            pass
        if not response.headers.get("Content-Encoding"):
            return bytes(body[:ERROR_BODY_BYTES])
        return await self._decoded_error(bytes(body), response.headers["Content-Encoding"])

    async def _decoded_error(self, raw: bytes, encoding: str) -> bytes:
        async def once() -> AsyncIterator[bytes]:
            yield raw

        try:
            return await read_bounded(once(), encoding, 8 * ERROR_BODY_BYTES)
        except (BodyTooLarge, BodyUndecodable):
            return b""

    async def close(self) -> None:
        """Close every connection; calls still running fail as cut."""
        await self._client.aclose()


class AiohttpTransport(httpx.AsyncBaseTransport):
    """An httpx transport whose connections are aiohttp's. The session is made in the loop of the first request.

    The response streams: nothing is read ahead of its reader but aiohttp's 64 KiB buffer, and nothing is decompressed.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx's transport errors, told apart by whether the request can have reached the other side."""
        limits: dict[str, float | None] = request.extensions.get("timeout", {})
        try:
            answer = await self._opened().request(
                request.method,
                _aiohttp_url(request.url),
                data=io.BytesIO(await request.aread()),
                headers=[(name, value) for name, value in request.headers.multi_items() if name != "transfer-encoding"],
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=limits.get("connect"), sock_read=limits.get("read")),
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, request) from error
        return httpx.Response(answer.status, headers=answer.raw_headers, stream=_Body(answer, request), request=request)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


class _Body(httpx.AsyncByteStream):
    """A response body on its way in. Closed before its end, it closes the connection; at its end, aiohttp keeps it."""

    def __init__(self, answer: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._answer = answer
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, self._request) from error

    async def aclose(self) -> None:
        self._answer.close()


def _aiohttp_url(url: httpx.URL) -> URL:
    """Built from parts, so that no second parser can see another host than the one that was checked."""
    path, _, query = url.raw_path.decode("ascii").partition("?")
    authority = url.netloc.decode("ascii")  # host and port, never a user
    return URL.build(scheme=url.scheme, authority=authority, path=path, query_string=query, encoded=True)


def _translated(error: Exception, request: httpx.Request) -> httpx.TransportError:
    text = str(error) or type(error).__name__
    match error:
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError(text, request=request)
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout(text, request=request)
        case TimeoutError():
            return httpx.ReadTimeout(text, request=request)
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | aiohttp.ClientResponseError():
            return httpx.RemoteProtocolError(text, request=request)
        case _:
            return httpx.ReadError(text, request=request)
