"""Whether an answer may be passed on: JSON within the size cap, the schemas of agent and step, every check.

The same rules for what an agent answers and for what a person gives in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.domain.expressions import ExpressionFailed
from orchestrator.domain.json_values import NotJson, dumps, loads
from orchestrator.domain.workflow import Agent
from orchestrator.engine.gather import Claimed
from orchestrator.engine.scope import scope

#: (schema, value) → what is wrong, each with its place.
Problems = Callable[[Mapping[str, Any], Any], list[str]]


class Rejected(Exception):
    """It may not; the message says why and where. ``text``: the answer as JSON, if it can be looked at."""

    def __init__(self, message: str, text: str | None = None) -> None:
        super().__init__(message)
        self.text = text


def passed(claimed: Claimed, agent: Agent, value: Any, output: Any, *, cap: int, problems: Problems) -> str:
    """The output's JSON text. ``value``: the step's input; ``cap`` in bytes. Raises ``Rejected``."""
    try:
        text = dumps(output)
    except NotJson as error:
        raise Rejected(f"the output is not JSON: {error}") from error
    if len(text) > cap // 4 and len(text.encode()) > cap:
        raise Rejected(f"the output is larger than {cap} bytes")
    schemas = [schema for schema in (agent.output_schema, claimed.node.output_schema) if schema is not None]
    checks = claimed.node.checks
    if not schemas and not checks:
        return text
    plain = loads(text)
    for schema in schemas:
        if found := problems(schema, plain):
            raise Rejected(f"the output misses its schema: {'; '.join(found)}", text)
    for check in checks:
        try:
            if not check.evaluate({**scope(claimed, check), "output": plain, "input": value}):
                raise Rejected(f"the check {check.source!r} does not hold", text)
        except ExpressionFailed as error:
            raise Rejected(f"the check {check.source!r} cannot be evaluated: {error}", text) from error
    return text
