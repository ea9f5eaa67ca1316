"""``http`` agents: the input POSTed as JSON, the JSON answer taken as output."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.clock import Clock
from orchestrator.domain.json_values import NotJson, dumps, loads
from orchestrator.domain.outcome import FailureClass
from orchestrator.domain.workflow import HttpAgent
from orchestrator.ports import Answer, CallContext
from workers.agents.classify import EXCHANGE_ERRORS, exchange_failure, status_failure
from workers.agents.egress import Egress, shown
from workers.agents.failing import failed
from workers.agents.transport import AgentHttp

#: Ours to set: each could break the framing, hide the key, or reach another virtual host than the one allowed.
_RESERVED = frozenset(
    {"host", "connection", "content-length", "content-type", "transfer-encoding", "te", "trailer", "upgrade"}
    | {"expect", "accept-encoding", "idempotency-key"}
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """POSTs JSON and reads JSON, within the egress list and the size limits; shared by ``http`` and ``chat``."""

    http: AgentHttp
    egress: Egress
    clock: Clock
    max_body_bytes: int

    async def post(
        self, url: str, payload: Any, headers: Mapping[str, str], context: CallContext, *, secret: str | None = None
    ) -> Any:
        """The answered JSON value; None for 204. Raises ``AgentFailed``.

        Sends the context's idempotency key. ``secret`` is blotted out of anything the failure quotes.
        """
        target = self.egress.check(url)
        try:
            body = dumps(payload).encode()
        except NotJson as error:
            raise failed(FailureClass.PERMANENT, f"The input cannot be sent as JSON: {error}") from error
        sent = {**headers, "Content-Type": "application/json", "Accept": "application/json"}
        sent["Idempotency-Key"] = context.idempotency_key
        if context.undoing is not None:
            sent["Orchestrator-Undoes-Key"] = context.undoing.key
            sent["Orchestrator-Undoes-Outcome"] = context.undoing.outcome
        try:
            answer = await self.http.post(target, body, sent, context.timeout)
        except EXCHANGE_ERRORS as error:
            raise exchange_failure(error, target, context.timeout) from error
        if answer.status == 204:
            return None
        if not 200 <= answer.status < 300:
            raise status_failure(answer, target, self.clock.now(), secret=secret)
        try:
            return loads(answer.body, max_bytes=self.max_body_bytes)
        except NotJson as error:
            raise failed(
                FailureClass.INVALID_OUTPUT,
                f"{shown(target)} answered {answer.status} with a body that is not JSON: {error}",
                answered=True,
            ) from error


@dataclass(frozen=True, slots=True)
class HttpCalls:
    """Calls ``http`` agents."""

    json: JsonCalls

    async def __call__(self, agent: HttpAgent, context: CallContext, input: Any) -> Answer:
        """Raises ``AgentFailed``; ``classify.py`` says what each status means."""
        _check_headers(agent.headers)
        return Answer(await self.json.post(agent.url, input, agent.headers, context))


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if name.lower() in _RESERVED:
            raise failed(
                FailureClass.PERMANENT, f"The agent sets the header {name!r}, which the worker sets. Remove it."
            )
        if not _HEADER_NAME.fullmatch(name) or _CONTROL.search(value):
            raise failed(
                FailureClass.PERMANENT, f"The agent's header {name!r} has characters that HTTP forbids. Remove them."
            )
