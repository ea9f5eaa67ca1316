"""Runs a suspect in a process of its own: a step that was twice in a process that died must not take others along.

The child is this module: it reads one call as JSON on stdin, makes it, and writes the answer as JSON on stdout. A child
that dies without an answer was taken down by this step alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.json_values import NotJson, dumps, loads
from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.domain.workflow import Agent
from orchestrator.ports import AgentFailed, Answer, CallContext

_AGENT: TypeAdapter[Agent] = TypeAdapter(Agent)
_MARK = "orchestrator-answer:"


@dataclass(slots=True)
class IsolatedCalls:
    """``options`` are the keyword arguments of ``AgentCalls``, as JSON values; ``at_once`` bounds the processes."""

    options: dict[str, Any]
    at_once: int = 2
    _room: asyncio.Semaphore | None = field(default=None)

    @property
    def lost_slots(self) -> int:
        return 0

    async def call(self, agent: Agent, context: CallContext, input: Any) -> Answer:
        """Raises ``AgentFailed``; with class ``worker_lost`` when the child died."""
        if self._room is None:
            self._room = asyncio.Semaphore(self.at_once)
        async with self._room:
            return await self._child(agent, context, input)

    async def _child(self, agent: Agent, context: CallContext, input: Any) -> Answer:
        call = {
            "parent": os.getpid(),
            "options": self.options,
            "agent": _AGENT.dump_python(agent, mode="json", by_alias=True, exclude_unset=True),
            "context": {
                "job_id": context.job_id,
                "path": context.path,
                "attempt": context.attempt,
                "idempotency_key": context.idempotency_key,
                "timeout": context.timeout,
            },
            "input": input,
        }
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "workers.isolation", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            out, _ = await child.communicate(json.dumps(call).encode())
        finally:
            if child.returncode is None:
                child.kill()
        for line in out.decode(errors="replace").splitlines():
            if line.startswith(_MARK):
                return _answer(loads(line.removeprefix(_MARK)))
        text = f"its process ended with status {child.returncode} and no answer"
        raise AgentFailed(Failure(FailureClass.WORKER_LOST, text, outcome_known=False))


def _answer(reply: dict[str, Any]) -> Answer:
    usage = Usage(**reply["usage"])
    if reply["failure"] is not None:
        raise AgentFailed(Failure.from_dict(reply["failure"]), usage)
    return Answer(reply["output"], usage)


async def _make(call: dict[str, Any]) -> dict[str, Any]:
    from pathlib import Path

    from workers.agents import AgentCalls, Egress

    options = dict(call["options"])
    options["search_path"] = [Path(path) for path in options.get("search_path", ())]
    egress = options.pop("egress", {"patterns": [], "unrestricted": False})
    calls = AgentCalls(egress=Egress(egress["patterns"], unrestricted=egress["unrestricted"]), **options)
    told = call["context"]
    context = CallContext(
        JobId(told["job_id"]), StepPath(told["path"]), told["attempt"], told["idempotency_key"], told["timeout"]
    )
    try:
        answer = await calls.call(_AGENT.validate_python(call["agent"]), context, call["input"])
        dumps(answer.output)
    except AgentFailed as error:
        return {"failure": error.failure.as_dict(), "usage": asdict(error.usage), "output": None}
    except NotJson as error:
        failure = Failure(FailureClass.INVALID_OUTPUT, f"the output is not JSON: {error}", answered=True)
        return {"failure": failure.as_dict(), "usage": asdict(Usage()), "output": None}
    finally:
        await calls.close()
    return {"failure": None, "usage": asdict(answer.usage), "output": answer.output}


def _die_with(parent: int) -> None:
    """Linux kills us with the worker: its step is called again elsewhere, and nobody would hear our answer."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    call = json.load(sys.stdin)
    _die_with(call["parent"])
    reply = asyncio.run(_make(call))
    sys.stdout.write("\n" + _MARK + dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
