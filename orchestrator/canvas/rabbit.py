"""RabbitMQ: kombu's py-amqp transport, which survives properties it cannot parse.

A client of another language can send headers that py-amqp fails on while it reads the frame (a timestamp beyond year
9999, a table nested a thousand deep). The error would leave the connection half-read and come back with the redelivery,
at every worker in turn. Here such a message arrives without properties, so the guard quarantines it like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amqp.method_framing import frame_handler
from kombu.transport import pyamqp

_CONTENT_HEADER = 2
#: Class id, weight, body size: what stands before the property flags in a content header.
_FIXED_PART = 12


def forgiving_frame_handler(connection: Any, callback: Callable[..., None]) -> Callable[[Any], bool]:
    """py-amqp's frame reader; a content header whose properties do not parse is read as having none."""
    read: Callable[[Any], bool] = frame_handler(connection, callback)

    def on_frame(frame: Any) -> bool:
        try:
            return read(frame)
        except Exception:
            kind, channel, content = frame
            if kind != _CONTENT_HEADER:
                raise
            return read((kind, channel, bytes(content[:_FIXED_PART]) + b"\0\0"))

    return on_frame


class Channel(pyamqp.Channel):
    """Leaves bodies as bytes: py-amqp would decode them by an encoding that the sender chose."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"auto_decode": False})


class Connection(pyamqp.Connection):
    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, frame_handler=forgiving_frame_handler, **kwargs)


class Transport(pyamqp.Transport):
    Connection = Connection


class SSLTransport(pyamqp.SSLTransport):
    Connection = Connection
