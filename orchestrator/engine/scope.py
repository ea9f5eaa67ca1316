"""What a claimed step's expressions see, and the input they make. Pure: ``gather`` has read everything."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.expressions import Expression, Template
from orchestrator.domain.json_values import dumps, loads
from orchestrator.engine.gather import Claimed


def scope(claimed: Claimed, *sources: Expression | Template | None) -> dict[str, Any]:
    """The names that ``sources`` use, with their values; what none of them uses is not even parsed.

    Values may be shared with other steps: they are for reading.
    """
    names = {name for source in sources if source is not None for name in source.names}
    out: dict[str, Any] = {}
    if claimed.vars and names - {"input", "steps", "job"}:
        out.update(claimed.texts.value(claimed.vars))
    if "input" in names:
        out["input"] = claimed.texts.value(claimed.facts.input)
    if "steps" in names:
        out["steps"] = {name: claimed.texts.value(text) for name, text in claimed.outputs.items()}
    if "job" in names:
        facts = claimed.facts
        out["job"] = {"id": facts.id, "workflow": facts.workflow, "tenant": facts.tenant, "tags": facts.tags}
    return out


def input_of(claimed: Claimed) -> Any:
    """The agent's own copy of its input: what a person gave, else what ``with`` says.

    Raises ``ExpressionFailed``, ``NotJson``.
    """
    if claimed.given is not None:
        return loads(claimed.given)
    template = claimed.node.input
    return None if template is None else loads(dumps(template.evaluate(scope(claimed, template))))
