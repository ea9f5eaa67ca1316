"""Redis: kombu's own transport, less what makes it slow and fragile.

- One client object per connection pool instead of a new one per command: a fifth of all CPU on both sides.
- What comes out of a list is opened by the guard, not by a bare ``json.loads``.
- Each answer to a BRPOP is a beat of the pulse; what else waits in that list, and there is room for, is taken with it.

Acknowledgement emulation, priorities and timeouts are options, set in ``app.py``. This touches internals of kombu 5.7:
``tests/unit/test_canvas_kombu_internals.py`` fails when they change.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

from kombu.transport import redis as stock
from kombu.utils.encoding import bytes_to_str

#: Messages taken at once beside the one that was waited for.
TAKE = 32


class Channel(stock.Channel):
    """A channel whose options hold a ``guard`` (``Guard``) and a ``pulse`` (``Pulse``)."""

    from_transport_options = (*stock.Channel.from_transport_options, "guard", "pulse")
    guard: Any
    pulse: Any
    #: The pool and the client made for it. After a fork or a disconnect there is a new pool, so a new client.
    _kept: tuple[Any, Any] = (None, None)

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        pool = self.pool
        if self._kept[0] is not pool:
            self._kept = (pool, super()._create_client())
        return self._kept[1]

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                reply = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            self.pulse.beat()
            if not reply:
                raise Empty
            key, raw = reply
            queue = bytes_to_str(key)
            self._queue_cycle.rotate(queue)
            self._hand_over(raw, queue)
            for more in self._take_more(key):
                self._hand_over(more, queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _hand_over(self, raw: bytes, queue: str) -> None:
        envelope = self.guard.open(raw, queue)
        if envelope is not None:
            self.connection._deliver(envelope, queue)  # noqa: SLF001 - as kombu's own does

    def _take_more(self, key: bytes) -> list[bytes]:
        """As many of the next messages as there are slots for, in their order, at most ``TAKE``.

        One turn of kombu's loop for each message costs more than anything that is done with it.
        """
        count = min(self.qos.can_consume_max_estimate() or 0, TAKE)
        if count <= 0:
            return []
        connection = self.client.connection
        try:
            connection.send_command("RPOP", key, count)
            return self.client.parse_response(connection, "RPOP") or []
        except self.connection_errors:
            connection.disconnect()
            raise


class Transport(stock.Transport):
    Channel = Channel
