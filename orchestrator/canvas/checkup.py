"""What a doctor asks of the broker."""

from __future__ import annotations

from typing import Any

from orchestrator.canvas.publisher import let_go, open_for_write
from orchestrator.domain.errors import Unavailable


def broker_facts(app: Any) -> dict[str, str]:
    """``kind`` (redis, amqp, memory) and what is known of it: Redis's ``version`` and ``maxmemory_policy``, or
    ``unreadable`` where CONFIG and INFO are forbidden. Raises ``Unavailable`` within a few seconds."""
    try:
        connection = open_for_write(app)
    except Exception as error:
        raise Unavailable(
            f"the broker does not answer: {error}.", mend="Check ORCHESTRATOR_BROKER_URL and the broker."
        ) from error
    try:
        kind = str(connection.transport.driver_type)
        return {"kind": kind, **(_redis(connection.default_channel) if kind == "redis" else {})}
    finally:
        let_go(connection)


def _redis(channel: Any) -> dict[str, str]:
    try:
        with channel.conn_or_acquire() as client:
            server, memory = client.info("server"), client.info("memory")
    except Exception as error:  # noqa: BLE001 - forbidden by an ACL, or renamed by a hoster: the driver's errors vary
        return {"unreadable": f"{type(error).__name__}: {error}"[:200]}
    return {
        "version": str(server.get("redis_version", "")),
        "maxmemory": str(memory.get("maxmemory", "")),
        "maxmemory_policy": str(memory.get("maxmemory_policy", "")),
    }
