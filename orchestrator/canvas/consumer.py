"""Celery's consumer with the envelope guard in front, slots for a gate, and only the boot steps we need.

Left out: Events, Gossip, Mingle, Heart, Control, Agent and DelayedDelivery, so that ``celery -A workers.app worker``
needs no ``--without-…`` flags.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.exceptions import WorkerShutdown
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.tasks import Tasks
from kombu.common import QoS

from orchestrator.canvas.credit import LOOK_SECONDS, AmqpGate, OpenGate
from orchestrator.canvas.guard import ENTRY
from orchestrator.canvas.messages import MARKER, STEP
from orchestrator.clock import Clock

log = logging.getLogger("orchestrator.canvas")

#: Seconds between two tries to reach a broker that is away: 1, 2, 3, 3, …
FIRST_PAUSE, LONGEST_PAUSE = 1, 3


class StepTasks(Tasks):
    """Starts to consume, never more than there are free slots."""

    requires = (Connection,)
    label = "Tasks"

    def start(self, c: Any) -> None:
        c.update_strategies()
        c.qos_global = False  # quorum queues know no other, and the gate counts by consumer
        channel = c.connection.default_channel
        channel.basic_qos(0, c.initial_prefetch_count, False)
        c.task_consumer = c.app.amqp.TaskConsumer(c.connection, on_decode_error=c.on_decode_error)
        c.qos = QoS(lambda **_: None, c.initial_prefetch_count)
        if c.connection.transport.driver_type == "amqp":
            self._gate_rabbitmq(c)
        else:
            self._gate_virtual(c, channel)

    def _gate_virtual(self, c: Any, channel: Any) -> None:
        channel.qos.can_consume = c.has_free_slot
        channel.qos.can_consume_max_estimate = c.free_slots
        if c.paces_itself:
            c.pool.use_gate(OpenGate())

    def _gate_rabbitmq(self, c: Any) -> None:
        if not c.paces_itself:
            return  # prefork acks when a child takes the task: the prefetch is the bound
        gate = AmqpGate(c.task_consumer, c.pool.free_slots, c.pool.limit)
        c.pool.use_gate(gate)
        c.hub.call_repeatedly(LOOK_SECONDS, gate.look)

    def stop(self, c: Any) -> None:
        super().stop(c)
        if c.paces_itself:
            c.pool.close_gate()


class StepConsumer(Consumer):
    """``worker_consumer`` of the app."""

    #: Nothing sends events.
    event_dispatcher = None

    class Blueprint(bootsteps.Blueprint):
        name = "Consumer"
        default_steps = (Connection, StepTasks, "celery.worker.consumer.consumer:Evloop")

        def shutdown(self, parent: Any) -> None:
            self.send_all(parent, "shutdown")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = self.app.orchestrator_guard
        self.pulse = self.app.orchestrator_pulse
        self._frames_seen = -1
        self._leaving = False
        #: Our asyncio pool counts its slots and says when a claim is decided; Celery's own pools do not.
        self.paces_itself = hasattr(self.pool, "use_gate")
        if self.paces_itself:
            self.pool.serve(self)

    # Slots

    def free_slots(self) -> int:
        if self.paces_itself:
            return int(self.pool.free_slots())
        return max(0, int(self.pool.num_processes) - len(state.reserved_requests))

    def has_free_slot(self) -> bool:
        return self.free_slots() > 0

    def post(self, work: Callable[[], None]) -> None:
        """Runs ``work`` on this consumer's thread, soon. From any thread; py-amqp allows no other."""
        self.call_soon(work)
        connection = self.connection
        if not self.hub and connection is not None:
            connection.transport.wake()

    def call_soon_ack(self, p: Callable[..., None], *args: Any, **kwargs: Any) -> Callable[..., None]:
        """Acks now. Pools call back on this consumer's thread; Celery would leave it until the next socket is ready."""
        try:
            p(*args, **kwargs)
        except Exception:
            log.exception("message.ack_failed")
        return p

    def leave(self) -> None:
        """Ends the worker as SIGTERM does, from any thread: on the consumer's own, for py-amqp allows no other."""
        self._leaving = True
        self.post(self._check_stop)

    # The pulse

    def register_with_event_loop(self, hub: Any) -> None:
        super().register_with_event_loop(hub)
        hub.call_repeatedly(1.0, self._feel_pulse)

    def _feel_pulse(self) -> None:
        """A full worker does not ask, which is not deafness. RabbitMQ shows its life by frames, heartbeats included."""
        if not self.has_free_slot():
            self.pulse.beat()
        frames = getattr(getattr(self.connection, "_connection", None), "bytes_recv", None)
        if frames is not None and frames != self._frames_seen:
            self._frames_seen = frames
            self.pulse.beat()

    # The broker comes and goes

    def ensure_connected(self, conn: Any) -> Any:
        """Tries until it is connected or the worker stops. Celery's own pauses grow to 30 s."""
        connected = conn.ensure_connection(
            self._log_retry,
            None,
            interval_start=FIRST_PAUSE,
            interval_step=1,
            interval_max=LONGEST_PAUSE,
            callback=self._check_stop,
        )
        self.first_connection_attempt = False
        return connected

    def _check_stop(self) -> None:
        state.maybe_shutdown()
        if self._leaving:
            raise WorkerShutdown(0)

    def _log_retry(self, error: Exception, pause: float) -> None:
        log.warning("broker.unreachable", extra={"error": f"{type(error).__name__}: {error}"[:300], "pause": pause})

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if self.paces_itself:
            self.pool.connection_lost()
        with warnings.catch_warnings():
            # It announces a default of Celery 6 that we have set.
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        if isinstance(exc, self.channel_errors):
            # The broker is there and refuses: a queue's key holds something else, say. It will refuse again at once.
            Clock().sleep(LONGEST_PAUSE / 2)

    # The guard

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            problem = self.guard.problem(message)
            if problem is not None:
                self.quarantine(message, problem)
                return
            try:
                handle(message)
            except Exception as error:  # noqa: BLE001 - the guard's whole point; logged there
                self._survive(message, error)

        return on_message

    def _survive(self, message: Any, error: Exception) -> None:
        """The message passed the guard and Celery still failed on it."""
        log.error("message.failed", extra={"task": message.headers.get("task")}, exc_info=error)
        if message.headers.get("task") in {STEP, MARKER}:
            # Ours is well formed, so the fault is not the message's; SQL knows that the step is still to be done.
            self._ack(message)
        else:
            self.quarantine(message, f"Celery cannot take it: {error!r}"[:500])

    def quarantine(self, message: Any, reason: str) -> None:
        """Keeps the message's raw bytes, acks it, goes on."""
        self.guard.refuse(raw_bytes(message), queue_of(message), reason)
        self._ack(message)

    def _ack(self, message: Any) -> None:
        with suppress(*self.connection_errors, *self.channel_errors):
            if hasattr(message, "ack"):
                if not message.acknowledged:
                    message.ack()
            else:  # py-amqp's own message, which kombu could not wrap
                message.channel.basic_ack(message.delivery_tag)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self.quarantine(message, f"cannot be decoded: {exc!r}"[:500])

    def on_unknown_message(self, _body: Any, message: Any) -> None:
        self.quarantine(message, "not a Celery message")

    def on_unknown_task(self, _body: Any, message: Any, _exc: Exception) -> None:
        self.quarantine(message, "unknown task")

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        self.quarantine(message, f"invalid task: {exc!r}"[:500])


def raw_bytes(message: Any) -> bytes:
    """The queue entry of a virtual transport as it was; from RabbitMQ the body."""
    envelope = getattr(message, "_raw", None)
    if envelope is not None:
        return bytes(envelope.get(ENTRY, b""))
    body = getattr(message, "body", None) or b""
    return body.encode(errors="replace") if isinstance(body, str) else bytes(body)


def queue_of(message: Any) -> str:
    delivery = getattr(message, "delivery_info", None) or {}
    return str(delivery.get("routing_key") or "")
