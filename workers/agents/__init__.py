"""Calling agents: one file per kind, and the table from a definition's kind to its caller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

from orchestrator.clock import Clock
from orchestrator.domain.workflow import Agent, ChatAgent, HttpAgent, PythonAgent, ScriptedAgent
from orchestrator.ports import Answer, CallContext
from workers.agents.chat import ChatCalls
from workers.agents.egress import Egress
from workers.agents.http import HttpCalls, JsonCalls
from workers.agents.python import PythonCalls
from workers.agents.scripted import ScriptedCalls
from workers.agents.targets import Targets
from workers.agents.threads import AgentThreads
from workers.agents.transport import AgentHttp

__all__ = ["AgentCalls", "Egress"]


class AgentCalls:
    """Calls any agent. Owns the HTTP connections and the threads of one worker process; used from one event loop.

    ``agent_packages`` and ``search_path``: where Python targets may live (``targets.py``). ``egress``: where ``http``
    and ``chat`` agents may call. ``concurrency``: synchronous agents at once. ``max_output_bytes`` bounds an answer's
    body. ``allow_exit``: scripted agents may kill the process (tests only).
    """

    def __init__(
        self,
        *,
        agent_packages: Sequence[str] = (),
        search_path: Sequence[Path] = (),
        egress: Egress | None = None,
        concurrency: int = 20,
        chat_base_url: str | None = None,
        chat_model: str | None = None,
        max_output_bytes: int = 10 * 1024 * 1024,
        connect_timeout: float = 10.0,
        allow_exit: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._http = AgentHttp(max_body_bytes=max_output_bytes, connect_timeout=connect_timeout)
        self._threads = AgentThreads(concurrency)
        json = JsonCalls(self._http, egress or Egress(), clock or Clock(), max_output_bytes)
        self._python_calls = PythonCalls(Targets(agent_packages, search_path), self._threads)
        self._http_calls = HttpCalls(json)
        self._chat_calls = ChatCalls(json, chat_base_url, chat_model)
        self._scripted_calls = ScriptedCalls(allow_exit=allow_exit)

    async def call(self, agent: Agent, context: CallContext, input: Any) -> Answer:
        """One attempt. Raises ``AgentFailed``; anything else it raises is a bug of ours.

        Cancelling it closes its connection, or abandons its thread, at once. ``context.timeout`` bounds ``http`` and
        ``chat``; for the other kinds the caller enforces it, by cancelling.
        """
        match agent:
            case PythonAgent():
                return await self._python_calls(agent, context, input)
            case HttpAgent():
                return await self._http_calls(agent, context, input)
            case ChatAgent():
                return await self._chat_calls(agent, context, input)
            case ScriptedAgent():
                return await self._scripted_calls(agent, context, input)
            case _:
                assert_never(agent)

    def light(self, agent: Agent) -> bool:
        """Whether its calls mostly wait, so that several may run side by side here as well as in several processes."""
        return not isinstance(agent, PythonAgent) or self._python_calls.light(agent)

    @property
    def lost_slots(self) -> int:
        """Threads held by synchronous agents that overran and were abandoned; falls when one returns after all."""
        return self._threads.lost

    async def close(self) -> None:
        """Let go of connections and threads. Abandoned threads do not keep the process from ending."""
        self._threads.close()
        await self._http.close()
