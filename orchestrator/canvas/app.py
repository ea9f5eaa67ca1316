"""The Celery app: every setting, each with what it protects against. Nothing here is read from the environment."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any, Final

from celery import Celery
from celery.app.amqp import AMQP, Queues
from kombu.connection import Connection as KombuConnection
from kombu.entity import Exchange, Queue

from orchestrator.canvas import inprocess
from orchestrator.canvas.guard import Guard
from orchestrator.canvas.messages import DEAD_QUEUE
from orchestrator.canvas.pulse import Pulse
from orchestrator.canvas.runtime import runtime_of
from orchestrator.clock import Clock
from orchestrator.domain.errors import ConfigError

#: How the URL of a broker we know begins.
SCHEMES: Final = ("redis", "rediss", "memory", "amqp", "amqps")
#: Seconds after which a broker that is silent on a new connection, or on a command, counts as gone.
CONNECT_SECONDS: Final = 3.0
COMMAND_SECONDS: Final = 5.0
#: Seconds between checks that a waiting connection is alive: a silent cut is noticed after two, with margin for 15 s.
HEALTH_SECONDS: Final = 4
#: Deliveries of one message by RabbitMQ before it goes to ``DEAD_QUEUE``. Guards what kills a process before its claim;
#: after a claim the message is acked, and attempts are counted in SQL.
DELIVERY_LIMIT: Final = 5


def transport_class(scheme: str) -> type:
    """Our transport for one of ``SCHEMES``. Loads the driver of that broker and of no other."""
    match scheme:
        case "memory":
            return inprocess.Transport
        case "redis" | "rediss":
            from orchestrator.canvas import transport

            return transport.Transport
        case _:
            from orchestrator.canvas import rabbit

            return rabbit.SSLTransport if scheme == "amqps" else rabbit.Transport


class StepConnection(KombuConnection):
    """A kombu connection on our transports, without touching kombu's table of them, which all apps share."""

    def get_transport_cls(self) -> Any:
        return transport_class(self.transport_cls)


class StepQueues(Queues):
    """Queues declared alike whether the app names them, ``-Q`` does, or a step does: RabbitMQ refuses a difference."""

    def new_missing(self, name: str) -> Queue:
        return step_queue(name)


class StepAMQP(AMQP):
    Connection = StepConnection
    queues_cls = StepQueues
    #: It reaches each queue by its name: nothing to declare, and nothing in Redis that FLUSHALL could take.
    default_exchange = Exchange("")


def step_queue(name: str) -> Queue:
    """One FIFO list on Redis; on RabbitMQ a durable quorum queue, the kind that has a delivery limit."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    if name != DEAD_QUEUE:
        arguments["x-delivery-limit"] = DELIVERY_LIMIT
        arguments |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD_QUEUE}
    return Queue(name, Exchange(""), routing_key=name, durable=True, queue_arguments=arguments)


def make_app(
    broker_url: str,
    *,
    queues: Sequence[str] = ("default",),
    concurrency: int = 20,
    soft_shutdown_seconds: float = 20.0,
    clock: Clock | None = None,
) -> Celery:
    """A Celery app for ``broker_url``, to publish from and to consume ``queues`` with. It connects to nothing yet.

    Workers need a runtime too (``attach_runtime``). Beside Celery's attributes the app has ``orchestrator_guard``
    (``Guard``) and ``orchestrator_pulse`` (``Pulse``), and on ``memory://`` ``orchestrator_broker``.
    Raises ``ConfigError`` for a URL of another kind.
    """
    scheme = broker_url.partition("://")[0]
    if scheme not in SCHEMES or ";" in broker_url:
        raise ConfigError(
            "ORCHESTRATOR_BROKER_URL is not one URL of a broker we know.",
            mend=f"Begin it with {', '.join(f'{known}://' for known in SCHEMES)}.",
        )
    clock = clock or Clock()
    transport_class(scheme)  # its driver is loaded here, at the start, and not when the first message is due
    app = Celery("orchestrator", amqp=StepAMQP, set_as_current=False)
    app.orchestrator_pulse = Pulse(clock)
    app.orchestrator_guard = guard_of(app)
    app.orchestrator_broker = inprocess.Broker(clock) if scheme == "memory" else None
    app.conf.update(
        **messages(),
        **consuming(concurrency, soft_shutdown_seconds),
        **brokering(broker_url, scheme),
        task_queues=[step_queue(name) for name in queues],
        task_default_queue=queues[0],
        broker_transport_options=transport_options(app, scheme),
    )
    return app


def guard_of(app: Any) -> Guard:
    def keep(raw: bytes, queue: str, reason: str) -> None:
        runtime_of(app).runtime.on_quarantine(raw, queue, reason)

    return Guard(is_known=lambda task: task in app.tasks, keep=keep)


def messages() -> dict[str, Any]:
    return {
        # JSON only, in and out: a pickle from the broker is code that runs.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        # Results are checkpoints in SQL. Celery's store would double the cost and keep a second truth.
        "task_ignore_result": True,
        "result_backend": "orchestrator.canvas.backend:ChordBackend",
        # Acked at the claim (the pool accepts a step then), not before the worker has it, not after a call of hours.
        "task_acks_late": False,
        # A lost worker is found by its lease. A requeue by Celery would repeat a poison step for ever.
        "task_reject_on_worker_lost": False,
        # A step may go to any queue its agent names.
        "task_create_missing_queues": True,
        # Publishing is retried by nobody here: what is lost is found in SQL.
        "task_publish_retry": False,
        "enable_utc": True,
    }


def consuming(concurrency: int, soft_shutdown_seconds: float) -> dict[str, Any]:
    return {
        # Imported by workers only: who publishes names tasks, and needs none.
        "imports": ["workers.tasks"],
        "worker_pool": "workers.pool:AsyncioPool",
        "worker_consumer": "orchestrator.canvas.consumer:StepConsumer",
        "worker_concurrency": concurrency,
        # No more is fetched than can run: what waits in a worker's memory is out of every other worker's reach.
        "worker_prefetch_multiplier": 1,
        # Events halve a fast worker; metrics come from SQL and from our own counters.
        "worker_send_task_events": False,
        "task_send_sent_event": False,
        # Revoke and rate limits live in one process's memory. Cancel and limits are rows.
        "worker_enable_remote_control": False,
        "worker_disable_rate_limits": True,
        # At a lost connection steps run on: their leases are renewed through SQL, not through the broker.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # The consumer gates by free slots itself.
        "worker_enable_prefetch_count_reduction": False,
        # It would declare 28 queues for ETA messages, which do not exist here; timers are rows.
        "worker_detect_quorum_queues": False,
        # SIGTERM: seconds that live calls get to end before they are cut and handed back.
        "worker_soft_shutdown_timeout": soft_shutdown_seconds,
        # Logs are configured by the process that runs us.
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def brokering(broker_url: str, scheme: str) -> dict[str, Any]:
    return {
        "broker_url": broker_url,
        # A worker waits for its broker for ever, also at its start: nobody restarts it in the right order.
        "broker_connection_retry_on_startup": True,
        "broker_connection_retry": True,
        "broker_connection_max_retries": None,
        # An error on a channel (WRONGTYPE on Redis, one closed by RabbitMQ) reconnects instead of ending the worker.
        "broker_channel_error_retry": True,
        "broker_connection_timeout": CONNECT_SECONDS,
        # RabbitMQ: a silent cut is noticed after two missed beats.
        "broker_heartbeat": HEALTH_SECONDS,
        "broker_use_ssl": verified_tls(scheme),
    }


def verified_tls(scheme: str) -> dict[str, Any] | None:
    """Left alone, kombu accepts any certificate. ``?ssl_cert_reqs=…`` in a ``rediss://`` URL still wins."""
    match scheme:
        case "rediss":
            return {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        case "amqps":
            return {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}  # None: the URL's host
        case _:
            return None


def transport_options(app: Any, scheme: str) -> dict[str, Any]:
    ours = {"guard": app.orchestrator_guard, "pulse": app.orchestrator_pulse}
    match scheme:
        case "redis" | "rediss":
            return ours | redis_options()
        case "memory":
            return ours | {"broker": app.orchestrator_broker}
        case _:
            # The publisher asks for confirms itself, once a batch. A write into a dead connection must end.
            return {"write_timeout": COMMAND_SECONDS}


def redis_options() -> dict[str, Any]:
    """``retry_on_timeout`` must stay unset: kombu would publish one by one instead of in batches."""
    return {
        # Two thirds of the consumer's time, and the cause of duplicates. What a dying worker had is found by its lease
        # and by markers, in seconds; emulation finds it after an hour.
        "ack_emulation": False,
        # One FIFO list for a queue, else a marker overtakes steps and proves nothing.
        "priority_steps": [0],
        # Without them a publish into a black hole waits for ever.
        "socket_timeout": COMMAND_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_keepalive": True,
        # A BRPOP that is not answered within this, beside its own second, is on a dead connection.
        "health_check_interval": HEALTH_SECONDS,
        # No tasks of ours are restored by kombu's sweep, so it need not run often.
        "unacked_restore_interval": 3600,
    }
