"""A server that answers ``POST /delay/SECONDS`` after so long, in its own process: ``python -m bench.fake_server``.

It prints its port; for a line of input, how many calls have reached it. One event loop, no framework: its own cost is
reported apart from the columns'.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from functools import partial

BODY = b'{"ok": true}'


async def serve(calls: Iterator[int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            next(calls)
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
            await reader.readexactly(length)
            await asyncio.sleep(float(head.split(b" ", 2)[1].rpartition(b"/")[2]))
            close = b"connection: close" in head
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"
                % (len(BODY), b"Connection: close\r\n" if close else b"", BODY)
            )
            if close:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    calls = itertools.count()
    server = await asyncio.start_server(partial(serve, calls), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(next(calls), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
