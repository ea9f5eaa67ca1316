"""``chat`` agents: OpenAI-compatible chat completions.

Thin on purpose: SDKs retry behind our back and hide what was spent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from orchestrator.domain.complaint import complaint
from orchestrator.domain.expressions import ExpressionError, ExpressionFailed, Template
from orchestrator.domain.json_values import NotJson, dumps, loads
from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.domain.workflow import ChatAgent
from orchestrator.ports import AgentFailed, Answer, CallContext
from workers.agents.failing import excerpt, failed
from workers.agents.http import JsonCalls

_DEFAULT_KEY = "ORCHESTRATOR_CHAT_API_KEY"
#: A definition names the variable, so it must not be able to name just any (the database's URL, the API's own key).
_KEY_NAME = re.compile(r"(?!ORCHESTRATOR_API_KEY$)[A-Z0-9_]*API_KEY[A-Z0-9_]*")
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
_MOST_TOKENS = 2**53


@dataclass(frozen=True, slots=True)
class ChatCalls:
    """Calls ``chat`` agents. ``base_url`` and ``model`` serve agents that name none; keys come from ``environment``."""

    json: JsonCalls
    base_url: str | None
    model: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    _template: Any = field(default_factory=lambda: lru_cache(maxsize=256)(Template.compile), repr=False)

    async def __call__(self, agent: ChatAgent, context: CallContext, input: Any) -> Answer:
        """Raises ``AgentFailed``; once the model has answered, with what that cost."""
        base_url = agent.base_url or self.base_url
        if not base_url:
            raise failed(
                FailureClass.PERMANENT,
                "The chat agent names no base_url and the worker has none. "
                "Set base_url on the agent, or ORCHESTRATOR_CHAT_BASE_URL on the worker.",
            )
        model = agent.model or self.model
        if not model:
            raise failed(
                FailureClass.PERMANENT,
                "The chat agent names no model and the worker has none. "
                "Set model on the agent, or ORCHESTRATOR_CHAT_MODEL on the worker.",
            )
        agent = agent.model_copy(update={"model": model})
        payload = _request(agent, self._prompt(agent.prompt, input) + _rejection(context.previous))
        key = self._key(agent.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{base_url.rstrip('/')}/chat/completions"
        try:
            reply = await self.json.post(url, payload, headers, context, secret=key)
        except AgentFailed as error:
            raise _without_quota(error) from error
        return _answer(agent, reply)

    def _prompt(self, prompt: str, input: Any) -> str:
        try:
            value = self._template(prompt).evaluate({"input": input})
            return value if isinstance(value, str) else dumps(value)
        except (ExpressionError, ExpressionFailed, NotJson) as error:
            raise failed(FailureClass.PERMANENT, f"prompt: {error}") from error

    def _key(self, name: str) -> str | None:
        """None where no key is needed: the default variable may be unset, one that the agent names may not."""
        if not _KEY_NAME.fullmatch(name):
            raise failed(
                FailureClass.REFUSED_BY_POLICY,
                f"api_key_env {name!r} is not read: the variable's name must contain API_KEY.",
            )
        key = self.environment.get(name, "").strip()
        if not key and name != _DEFAULT_KEY:
            raise failed(FailureClass.PERMANENT, f"api_key_env: the variable {name} is not set on this worker. Set it.")
        if not key.isascii() or not key.isprintable():
            raise failed(FailureClass.PERMANENT, f"The key in {name} has characters no header can carry. Correct it.")
        return key or None


def _rejection(previous: Failure | None) -> str:
    """What a prompt ends with after an answer that was not accepted."""
    why = complaint(previous)
    return "" if why is None else f"\n\nYour previous answer was not accepted: {why}\nAnswer again, with that mended."


def _request(agent: ChatAgent, prompt: str) -> dict[str, Any]:
    system = [{"role": "system", "content": agent.system}] if agent.system else []
    request: dict[str, Any] = {"model": agent.model, "messages": [*system, {"role": "user", "content": prompt}]}
    if agent.temperature is not None:
        request["temperature"] = agent.temperature
    if agent.max_tokens is not None:
        request["max_tokens"] = agent.max_tokens
    if agent.answer == "json" and (form := _response_format(agent.output_schema)):
        request["response_format"] = form
    return request


def _response_format(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """Providers force objects only: for a schema of another type the prompt alone has to say it."""
    if schema is None:
        return {"type": "json_object"}
    if schema.get("type") == "object":
        return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
    return None


def _without_quota(error: AgentFailed) -> AgentFailed:
    """A 429 for an empty account is not a matter of waiting."""
    if error.failure.kind is not FailureClass.RATE_LIMITED or "insufficient_quota" not in str(error.failure.detail):
        return error
    return failed(
        FailureClass.PERMANENT,
        "The provider says that the account's quota is used up. Top it up.",
        **error.failure.detail,
    )


def _answer(agent: ChatAgent, reply: Any) -> Answer:
    usage = _usage(agent, reply)
    choice = _first_choice(reply)
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, dict):
        raise _unusable("The answer is not a chat completion: it has no choices[0].message.", usage)
    finish, content = choice.get("finish_reason"), message.get("content")
    if finish == "content_filter" or message.get("refusal"):
        why = f"The model refused: {excerpt(str(message.get('refusal') or 'stopped by the content filter'), 500)}"
        raise failed(FailureClass.REFUSED_BY_POLICY, why, answered=True, usage=usage)
    if finish == "length":
        raise _unusable("The answer was cut off at the token limit. Raise max_tokens or ask for less.", usage)
    if not isinstance(content, str):
        raise _unusable(f"The answer has no text content (finish_reason {finish!r}).", usage)
    return Answer(_parsed(content, usage) if agent.answer == "json" else content, usage)


def _first_choice(reply: Any) -> dict[str, Any] | None:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _parsed(content: str, usage: Usage) -> Any:
    fenced = _FENCED.fullmatch(content)
    try:
        return loads(fenced[1] if fenced else content)
    except NotJson as error:
        raise _unusable(f"The answer is not JSON: {error}", usage, content=excerpt(content)) from error


def _unusable(message: str, usage: Usage, **detail: Any) -> AgentFailed:
    return failed(FailureClass.INVALID_OUTPUT, message, answered=True, usage=usage, **detail)


def _usage(agent: ChatAgent, reply: Any) -> Usage:
    """What the provider says was used; what it does not say, or says nonsensically, counts as 0."""
    stated = reply.get("usage") if isinstance(reply, dict) else None
    tokens_in, tokens_out = (_tokens(stated, name) for name in ("prompt_tokens", "completion_tokens"))
    cost = (tokens_in * agent.price.input + tokens_out * agent.price.output) / 1_000_000
    model = reply.get("model") if isinstance(reply, dict) else None
    return Usage(tokens_in, tokens_out, cost, excerpt(model, 200) if isinstance(model, str) else agent.model)


def _tokens(stated: Any, name: str) -> int:
    value = stated.get(name) if isinstance(stated, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS else 0
