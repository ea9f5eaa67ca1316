"""Reading a response body within a bound, whatever its sender does.

httpx decodes each chunk whole (64 KiB of gzip can become 64 MB), so the raw bytes are decoded here, up to the limit.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

_AUTO_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class BodyTooLarge(Exception):
    """The body, or what it decompresses to, is above the limit; it was not read further."""


class BodyUndecodable(Exception):
    """The body's content encoding is unknown or broken."""


class _Inflate:
    """Decompresses gzip (also of several members) or zlib, at most ``room`` + 1 bytes a call."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_AUTO_GZIP_OR_ZLIB)
        self._fresh = True

    def feed(self, data: bytes, room: int) -> bytes:
        output = bytearray()
        while data and len(output) <= room:
            if self._stream.eof:
                self._stream, self._fresh = zlib.decompressobj(_AUTO_GZIP_OR_ZLIB), True
            output += self._stream.decompress(data, room + 1 - len(output))
            self._fresh = False
            data = self._stream.unused_data if self._stream.eof else b""
        return bytes(output)

    @property
    def complete(self) -> bool:
        return self._fresh or self._stream.eof


async def read_bounded(chunks: AsyncIterator[bytes], encoding: str, limit: int) -> bytes:
    """The decoded body of at most ``limit`` bytes; stops reading at the first chunk that passes it.

    ``encoding`` is the Content-Encoding header: none, ``identity``, ``gzip`` or ``deflate``. Raw bytes count too, so a
    stream that decompresses to nothing is bounded as well.
    """
    match encoding.strip().lower():
        case "" | "identity":
            inflate = None
        case "gzip" | "x-gzip" | "deflate":
            inflate = _Inflate()
        case other:
            raise BodyUndecodable(f"the answer has the content encoding {other[:40]!r}, which was not asked for")
    body, raw = bytearray(), 0
    async for chunk in chunks:
        raw += len(chunk)
        try:
            body += inflate.feed(chunk, limit - len(body)) if inflate else chunk
        except zlib.error as error:
            raise BodyUndecodable(f"the compressed answer is broken ({error})") from error
        if len(body) > limit or raw > limit:
            raise BodyTooLarge(f"the answer is larger than {limit} bytes")
    if inflate and not inflate.complete:
        raise BodyUndecodable("the compressed answer ends too early")
    return bytes(body)
