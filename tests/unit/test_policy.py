"""What a definition from outside may name: the same answer as the worker will give."""

from __future__ import annotations

import pytest

from orchestrator.domain.workflow import Workflow
from orchestrator.engine.policy import Policy, RefusedByPolicy, _url_allowed, enforce
from orchestrator.ports import AgentFailed
from tests.unit.test_agents_egress import ALLOWED, REFUSED
from workers.agents.egress import Egress


def workflow(**agent: object) -> Workflow:
    return Workflow.model_validate({"name": "w", "agents": {"a": agent}, "steps": [{"id": "s", "agent": "a"}]})


@pytest.mark.parametrize(("pattern", "url"), ALLOWED)
def test_what_the_worker_calls_is_accepted_as_long_as_it_is_written_plainly(pattern: str, url: str) -> None:
    assert _url_allowed((pattern,), url) is (".." not in url)


@pytest.mark.parametrize(("pattern", "url"), REFUSED)
def test_what_the_worker_refuses_is_refused(pattern: str, url: str) -> None:
    with pytest.raises(AgentFailed):
        Egress((pattern,)).check(url)
    assert not _url_allowed((pattern,), url)


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("acme:run", True),
        ("acme.agents:run", True),
        ("acme_evil.agents:run", False),
        ("acmeagents:run", False),
        ("os:system", False),
    ],
)
def test_python_targets_stay_inside_the_packages(target: str, allowed: bool) -> None:
    one = workflow(kind="python", target=target)
    if allowed:
        enforce(one, Policy(("acme",)))
        return
    with pytest.raises(RefusedByPolicy, match="ORCHESTRATOR_AGENT_PACKAGES") as raised:
        enforce(one, Policy(("acme",)))
    assert raised.value.problems[0].path == "agents.a.target"
    assert (raised.value.code, raised.value.status) == ("refused_by_policy", 422)


def test_a_reconciler_is_held_to_the_same_rules() -> None:
    python = workflow(kind="python", target="acme:run", reconcile="os:listdir")
    http = workflow(kind="http", url="https://a.example.com/", reconcile_url="https://b.example.com/")
    for one, place in ((python, "reconcile"), (http, "reconcile_url")):
        with pytest.raises(RefusedByPolicy) as raised:
            enforce(one, Policy(("acme",), ("https://a.example.com",)))
        assert [problem.path for problem in raised.value.problems] == [f"agents.a.{place}"]


def test_nothing_is_allowed_by_default() -> None:
    for agent in (
        {"kind": "python", "target": "acme:run"},
        {"kind": "http", "url": "https://api.example.com/"},
        {"kind": "chat", "model": "m", "prompt": "p", "base_url": "https://api.example.com/v1"},
    ):
        with pytest.raises(RefusedByPolicy):
            enforce(workflow(**agent), Policy())


def test_the_operators_own_endpoint_and_stand_ins_are_always_allowed() -> None:
    enforce(workflow(kind="chat", model="m", prompt="p"), Policy())
    enforce(workflow(kind="scripted"), Policy())


def test_dev_allows_any_target_and_any_http_address_but_nothing_stranger() -> None:
    dev = Policy(None, None)
    enforce(workflow(kind="python", target="mine:run"), dev)
    enforce(workflow(kind="http", url="http://127.0.0.1:9/x"), dev)
    for url in ("file:///etc/passwd", "ftp://host/", "http://", "http://user:pass@host/"):
        with pytest.raises(RefusedByPolicy):
            enforce(workflow(kind="http", url=url), dev)


def test_a_refusal_names_no_password() -> None:
    with pytest.raises(RefusedByPolicy) as raised:
        enforce(workflow(kind="http", url="https://user:hunter22@evil.test/?key=hunter22"), Policy())
    assert "hunter22" not in str(raised.value)
