"""``chat`` agents against a real server that speaks like a provider, well and badly."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.domain.complaint import carried
from orchestrator.domain.outcome import Failure, FailureClass, Usage
from tests.support.agent_calls import agent, answer_of, call_context, failure_of_call
from tests.support.fake_agents_server import FakeAgents, Reply
from workers.agents import Egress

PATH = "/v1/chat/completions"
KEY = "ORCHESTRATOR_CHAT_API_KEY"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgents]:
    monkeypatch.delenv(KEY, raising=False)
    with FakeAgents() as running:
        yield running


def chat(server: FakeAgents, **more: Any) -> Any:
    definition = {"model": "m-1", "prompt": "Summarise: ${{ input.text }}", "base_url": f"{server.url}/v1/", **more}
    return agent(kind="chat", **definition)


def completion(content: Any, *, finish: str | None = "stop", usage: Any = None, **message: Any) -> Reply:
    body = {
        "model": "m-1-2026",
        "choices": [{"finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 200} if usage is None else usage,
    }
    return Reply(body=json.dumps(body).encode())


def test_the_request_says_model_messages_and_key_and_the_content_is_the_output(
    server: FakeAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    server.reply(PATH, completion("Short."))
    made = chat(server, system="Be brief.", temperature=0, max_tokens=50, price={"input": 0.25, "output": 2.0})
    answer = answer_of(made, {"text": "long"}, call_context(key="k-1"))
    assert answer.output == "Short."
    assert answer.usage == Usage(1000, 200, 1000 * 0.25e-6 + 200 * 2e-6, "m-1-2026")
    (request,) = server.requests
    assert request.json == {
        "model": "m-1",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Summarise: long"}],
        "temperature": 0,
        "max_tokens": 50,
    }
    assert request.headers["authorization"] == "Bearer sk-secret"
    assert request.headers["idempotency-key"] == "k-1"


def test_without_a_key_none_is_sent_and_the_base_url_may_come_from_the_worker(server: FakeAgents) -> None:
    server.reply(PATH, completion("x"))
    answer_of(chat(server, base_url=None), {"text": ""}, chat_base_url=f"{server.url}/v1")
    assert "authorization" not in server.requests[0].headers


def test_no_base_url_anywhere_says_where_to_set_it(server: FakeAgents) -> None:
    failure, _ = failure_of_call(chat(server, base_url=None), {"text": ""})
    assert failure.kind is FailureClass.PERMANENT
    assert "ORCHESTRATOR_CHAT_BASE_URL" in failure.message


def test_a_prompt_that_is_one_expression_is_sent_as_json_text(server: FakeAgents) -> None:
    server.reply(PATH, completion("x"))
    answer_of(chat(server, prompt="${{ input }}"), {"a": [1]})
    assert json.loads(server.requests[0].json["messages"][0]["content"]) == {"a": [1]}


def test_a_prompt_that_fails_is_permanent_and_nothing_is_called(server: FakeAgents) -> None:
    failure, _ = failure_of_call(chat(server), {})
    assert failure.kind is FailureClass.PERMANENT
    assert failure.message.startswith("prompt: ")
    assert server.connections == 0


@pytest.mark.parametrize("content", ['{"a": 1}', ' {"a":1}\n', '```json\n{"a": 1}\n```', '```\n{"a": 1}\n```\n'])
def test_json_answers_are_parsed(server: FakeAgents, content: str) -> None:
    server.reply(PATH, completion(content))
    assert answer_of(chat(server, answer="json"), {"text": ""}).output == {"a": 1}
    assert server.requests[0].json["response_format"] == {"type": "json_object"}


def test_a_rejected_answer_is_asked_for_again_with_the_complaint(server: FakeAgents) -> None:
    """E2: the prompt ends with why; while a later outcome is unknown, it stays the same to the letter."""
    server.reply(PATH, completion("x"))
    rejected = Failure(FailureClass.INVALID_OUTPUT, "score is missing", answered=True)
    timeout = carried(Failure(FailureClass.TIMEOUT, "late", outcome_known=False), rejected)
    for previous in (rejected, timeout, carried(timeout, timeout), Failure(FailureClass.TRANSIENT, "busy")):
        answer_of(chat(server), {"text": "long"}, call_context(previous=previous))
    prompts = [request.json["messages"][0]["content"] for request in server.requests]
    assert prompts[0].startswith("Summarise: long\n")
    assert "not accepted: score is missing" in prompts[0]
    assert prompts == [prompts[0]] * 3 + ["Summarise: long"]


def test_an_object_schema_is_sent_along(server: FakeAgents) -> None:
    server.reply(PATH, completion("[1]"))
    schema = {"type": "object", "required": ["a"]}
    answer_of(chat(server, answer="json", output_schema=schema), {"text": ""})
    answer_of(chat(server, answer="json", output_schema={"type": "array"}), {"text": ""})
    first, second = (request.json for request in server.requests)
    assert first["response_format"] == {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
    assert "response_format" not in second


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (completion("not json"), "invalid_output"),
        (completion('{"a": NaN}'), "invalid_output"),
        (completion(""), "invalid_output"),
        (completion('{"a": '), "invalid_output"),
        (completion("[" * 5000 + "]" * 5000), "invalid_output"),
        (completion('{"a": 1}', finish="length"), "invalid_output"),
        (completion(None, finish="tool_calls"), "invalid_output"),
        (completion([{"type": "text"}]), "invalid_output"),
        (completion("{}", finish="content_filter"), "refused_by_policy"),
        (completion(None, refusal="I will not."), "refused_by_policy"),
    ],
)
def test_an_answer_that_cannot_be_used_still_counts_what_it_cost(server: FakeAgents, reply: Reply, kind: str) -> None:
    server.reply(PATH, reply)
    failure, usage = failure_of_call(chat(server, answer="json", price={"input": 1, "output": 1}), {"text": ""})
    assert failure.kind is FailureClass(kind)
    assert failure.answered
    assert failure.outcome_known
    assert (usage.input_tokens, usage.output_tokens) == (1000, 200)
    assert usage.cost_usd == pytest.approx(0.0012)


@pytest.mark.parametrize(
    "body",
    ["null", "[]", "{}", '{"choices": []}', '{"choices": [1]}', '{"choices": {}}', '{"choices": [{"message": 1}]}'],
)
def test_an_answer_that_is_no_completion_is_invalid_output(server: FakeAgents, body: str) -> None:
    server.reply(PATH, Reply(body=body.encode()))
    failure, _ = failure_of_call(chat(server), {"text": ""})
    assert failure.kind is FailureClass.INVALID_OUTPUT
    assert "choices[0].message" in failure.message


@pytest.mark.parametrize(
    "usage",
    [
        {},
        [],
        7,
        {"prompt_tokens": "9"},
        {"prompt_tokens": -5},
        {"prompt_tokens": True},
        {"prompt_tokens": 1000.0},
        {"prompt_tokens": 2**60},
        {"prompt_tokens": None},
    ],
)
def test_usage_that_makes_no_sense_counts_as_none(server: FakeAgents, usage: Any) -> None:
    server.reply(PATH, completion("x", usage=usage))
    spent = answer_of(chat(server, price={"input": 1}), {"text": ""}).usage
    assert (spent.input_tokens, spent.output_tokens, spent.cost_usd) == (0, 0, 0)


def test_the_key_is_in_no_failure(server: FakeAgents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    server.reply(PATH, Reply(401, b'{"error": "wrong key sk-secret"}'))
    failure, _ = failure_of_call(chat(server), {"text": ""})
    assert failure.kind is FailureClass.PERMANENT
    assert "api_key_env" in failure.message
    assert "sk-secret" not in json.dumps(failure.as_dict())
    assert "wrong key ***" in failure.detail["body"]


def test_an_empty_account_is_not_waited_for(server: FakeAgents) -> None:
    server.reply(
        PATH, Reply(429, b'{"error": {"code": "insufficient_quota"}}'), Reply(429, b"{}", {"Retry-After": "3"})
    )
    failures = [failure_of_call(chat(server), {"text": ""})[0] for _ in range(2)]
    assert [failure.kind for failure in failures] == [FailureClass.PERMANENT, FailureClass.RATE_LIMITED]
    assert failures[1].retry_after == 3


def test_a_key_variable_that_the_agent_names_must_be_set(server: FakeAgents) -> None:
    failure, _ = failure_of_call(chat(server, api_key_env="UNSET_API_KEY"), {"text": ""})
    assert failure.kind is FailureClass.PERMANENT
    assert "UNSET_API_KEY" in failure.message


@pytest.mark.parametrize("name", ["ORCHESTRATOR_DATABASE_URL", "PATH", "ORCHESTRATOR_API_KEY", "AWS_SECRET_ACCESS_KEY"])
def test_a_definition_cannot_have_any_variable_sent_out(
    server: FakeAgents, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "a secret of the worker")
    failure, _ = failure_of_call(chat(server, api_key_env=name), {"text": ""})
    assert failure.kind is FailureClass.REFUSED_BY_POLICY
    assert server.connections == 0


def test_a_key_that_no_header_can_carry_is_not_shown(server: FakeAgents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-a\r\nX-Evil: 1")
    failure, _ = failure_of_call(chat(server), {"text": ""})
    assert failure.kind is FailureClass.PERMANENT
    assert "sk-a" not in failure.message
    assert server.connections == 0


def test_egress_holds_for_chat_too(server: FakeAgents) -> None:
    failure, _ = failure_of_call(chat(server), {"text": ""}, egress=Egress())
    assert failure.kind is FailureClass.REFUSED_BY_POLICY
    assert server.connections == 0
