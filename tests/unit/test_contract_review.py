"""The contract review: its agents on real texts, and its workflow files walked step by step as written."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.expressions import Template, condition
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.parse import parse_workflow
from orchestrator.domain.workflow import (
    AgentStep,
    ChatAgent,
    ForEachStep,
    ParallelStep,
    PythonAgent,
    SuperviseStep,
    Workflow,
)
from orchestrator.ports import CallContext
from workers.context import Context

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "examples" / "contract_review"
# A workflow's own directory is where its targets are looked up, by `run` and `dev` and so here.
sys.path.insert(0, str(HOME))

from contract_review import agents  # noqa: E402
from contract_review.markdown import plain_to_markdown  # noqa: E402
from contract_review.rules import RULES  # noqa: E402
from contract_review.spans import QUOTE  # noqa: E402
from contract_review.topics import TOPICS  # noqa: E402

LICENSE = (ROOT / "LICENSE").read_text(encoding="utf-8")
NDA = (HOME / "samples" / "nda.txt").read_text(encoding="utf-8")
SAAS = (HOME / "samples" / "saas-agreement.md").read_text(encoding="utf-8")
GERMAN = (
    "§ 1 Haftung\n\nDie Haftung des Anbieters entfällt in jedem Fall.\n\n§ 2 Dauer\n\nDer Vertrag läuft zwei Jahre. "
    * 3
)
TEXTS = {"licence": LICENSE, "nda": NDA, "saas": SAAS, "german": GERMAN}


def load(name: str) -> Workflow:
    return parse_workflow((HOME / name).read_text(encoding="utf-8"), file=name)


def context(**config: Any) -> Context:
    call = CallContext(JobId("job"), StepPath("step"), attempt=1, idempotency_key="key", timeout=60.0)
    return Context(call, config)


class Walk:
    """Runs a definition's forms in the plainest way there is: one after the other, every value through JSON."""

    def __init__(self, workflow: Workflow, chat: dict[str, Any] | None = None) -> None:
        self.workflow = workflow
        self.chat = chat or {}
        self.calls: list[str] = []

    def run(self, contract: str) -> Any:
        scope: dict[str, Any] = {"input": {"contract": contract}, "steps": {}}
        self.sequence(self.workflow.steps, scope)
        return Template.compile(self.workflow.output).evaluate(scope)

    def sequence(self, steps: Any, scope: dict[str, Any]) -> Any:
        scope["steps"] = dict(scope["steps"])
        output = None
        for step in steps:
            output = scope["steps"][step.id] = self.step(step, scope)
        return output

    def body(self, body: Any, scope: dict[str, Any]) -> Any:
        return self.sequence(body, scope) if isinstance(body, tuple) else self.step(body, scope)

    def step(self, step: Any, scope: dict[str, Any]) -> Any:
        if step.when is not None and not condition(step.when).evaluate(scope):
            return None
        match step:
            case AgentStep():
                output = self.call(step.agent, Template.compile(step.with_).evaluate(scope))
                assert all(condition(check).evaluate({**scope, "output": output}) for check in step.checks)
                return output
            case ForEachStep():
                items = Template.compile(step.for_each).evaluate(scope)
                return [self.body(step.do, {**scope, step.as_: item}) for item in items]
            case ParallelStep():
                return {name: self.body(branch, dict(scope)) for name, branch in step.parallel.items()}
            case SuperviseStep():
                return self.supervise(step, Template.compile(step.with_).evaluate(scope))
            case _:
                raise AssertionError(step)

    def supervise(self, step: SuperviseStep, goal: Any) -> Any:
        rule, previous = step.supervise, None
        assert rule.reviewer is not None
        for number in range(1, rule.rounds + 1):
            told = {"round": number, "goal": goal}
            plan = self.call(
                rule.supervisor, {"phase": "plan", **told, "workers": list(rule.workers), "previous": previous}
            )
            assert {item["agent"] for item in plan["assignments"]} <= set(rule.workers)
            results = [
                {"agent": item["agent"], "output": self.call(item["agent"], item["input"])}
                for item in plan["assignments"]
            ]
            review = self.call(rule.reviewer, {"phase": "review", **told, "results": results})
            previous = {"results": results, "review": review}
            met = condition(rule.until).evaluate({"review": review, "results": results, "round": number})
            if met:
                break
        outputs = [result["output"] for result in results]
        sole = outputs[0] if len(outputs) == 1 else outputs
        return {"result": sole, "results": results, "review": review, "rounds": number, "met": met}

    def call(self, name: str, given: Any) -> Any:
        self.calls.append(name)
        agent = self.workflow.agents[name]
        given = json.loads(json.dumps(given, allow_nan=False))
        if isinstance(agent, ChatAgent):
            assert Template.compile(agent.prompt).evaluate({"input": given})
            return self.chat[name](given)
        assert isinstance(agent, PythonAgent)
        function = getattr(agents, agent.target.partition(":")[2])
        output = function(context(**agent.config), given)
        if inspect.isawaitable(output):
            output = asyncio.run(_waited(output))
        return json.loads(json.dumps(output, allow_nan=False))


async def _waited(output: Any) -> Any:
    return await output


def review(contract: str) -> Any:
    return Walk(load("workflow.yaml")).run(contract)


def spans(value: Any) -> list[dict[str, Any]]:
    """Every quotation anywhere in ``value``."""
    if isinstance(value, dict):
        own = [value] if set(value) == {"start", "end", "quote"} else []
        return own + [span for inner in value.values() for span in spans(inner)]
    return [span for inner in value for span in spans(inner)] if isinstance(value, list) else []


def extracted(text: str) -> Any:
    facts = agents.find_facts(context(), {"text": text})
    return agents.extract_clauses(context(), {"text": text, "facts": facts})


def entry(output: Any, number: str) -> Any:
    return next(e for e in output["json"]["dossier"]["entries"] if e["id"] == number)


# ------------------------------------------------------------------------------------------------- the whole review


def test_the_licence_is_reviewed_sensibly() -> None:
    output = review(LICENSE)
    dossier, markdown = output["json"]["dossier"], output["markdown"]
    assert [e["number"] for e in dossier["entries"]] == [str(n) for n in range(1, 10)]
    assert entry(output, "8")["title"] == "Limitation of Liability"
    rules = {e["id"]: {f["rule"] for f in e["findings"]} for e in dossier["entries"]}
    assert rules["1"] == set()
    assert "licence-ends-on-suit" in rules["3"]
    assert "submission-licensed" in rules["5"]
    assert "warranty-disclaimed" in rules["7"]
    assert "liability-excluded" in rules["8"]
    assert "indemnity-given" in rules["9"]
    assert {e["id"] for e in dossier["entries"] if e["flagged"]} == {"3", "8", "9"}
    must = [d["act"] for d in entry(output, "4")["duties"] if d["kind"] == "must"]
    assert [act.split(" ")[1].strip(",") for act in must] == ["give", "cause", "retain", "include"]
    assert any(d["kind"] == "may" and "hereby grants" in d["act"] for d in entry(output, "2")["duties"])
    assert "Derivative Works" in {term["term"] for term in dossier["facts"]["terms"]}
    assert {m["topic"] for m in dossier["coverage"]["missing"]} == {"governing law", "disputes"}
    assert "### Section 9: Accepting Warranty or Additional Liability" in markdown
    assert len(json.dumps(output)) < 200_000


def test_the_first_draft_of_the_licence_falls_short_and_the_feedback_mends_it() -> None:
    output = review(LICENSE)
    assert output["json"]["met"] is True
    assert output["json"]["rounds"] == 2
    assert output["json"]["review"]["feedback"] == []
    walk = Walk(load("workflow.yaml"))
    walk.run(LICENSE)
    assert walk.calls.count("report-writer") == 2
    assert walk.calls.count("close-reader") == 3
    assert walk.calls.count("risk-classifier") == walk.calls.count("policy-checker") == 9


def test_a_short_contract_is_good_enough_at_once() -> None:
    output = review(NDA)
    assert (output["json"]["rounds"], output["json"]["met"]) == (1, True)
    facts = output["json"]["dossier"]["facts"]
    assert [p["name"] for p in facts["parties"]] == ["Harbour Lane Robotics GmbH", "Quillfeather Analytics Ltd"]
    assert [v["value"] for v in facts["dates"] + facts["amounts"]] == ["2024-03-04", "EUR 25000"]
    assert {b["rule"] for b in entry(output, "6")["breaches"]} == {"secrecy-ends", "secrecy-years"}
    assert entry(output, "3")["level"] == "none"


def test_headings_without_numbers_and_a_very_different_contract() -> None:
    output = review(SAAS)
    entries = {e["title"]: e for e in output["json"]["dossier"]["entries"]}
    assert {b["rule"] for b in entries["Term and renewal"]["breaches"]} == {"renewal-by-choice", "renewal-notice"}
    assert {b["rule"] for b in entries["Fees and payment"]["breaches"]} == {
        "price-stability",
        "payment-time",
        "late-interest",
    }
    assert "liability-excluded" not in {f["rule"] for f in entries["Liability"]["findings"]}, "only indirect loss is"
    assert entries["Definitions"]["findings"] == []
    assert output["json"]["dossier"]["verdict"].startswith("Do not accept")
    assert output["json"]["met"] is True


@pytest.mark.parametrize("name", TEXTS)
def test_every_quotation_stands_in_the_contract(name: str) -> None:
    contract = TEXTS[name]
    output = review(contract)
    for span in spans(output):
        assert contract[span["start"] : span["end"]] == span["quote"]
        assert len(span["quote"]) <= QUOTE


def test_windows_line_ends_change_nothing_but_offsets() -> None:
    unix, windows = review(LICENSE), review(LICENSE.replace("\n", "\r\n"))
    told = [
        [
            (e["id"], e["title"], e["score"], [f["rule"] for f in e["findings"]], [d["act"] for d in e["duties"]])
            for e in one
        ]
        for one in (unix["json"]["dossier"]["entries"], windows["json"]["dossier"]["entries"])
    ]
    assert told[0] == told[1]


def test_another_language_is_said_to_be_unread() -> None:
    output = review(GERMAN)
    dossier = output["json"]["dossier"]
    assert dossier["verdict"].startswith("No clause recognised")
    assert {e["level"] for e in dossier["entries"]} == {"unread"}
    assert dossier["coverage"] == {"checked": False, "present": [], "missing": []}
    assert spans(dossier["entries"]) == []
    assert "No clause recognised" in output["markdown"]


def test_a_shopping_list_is_no_contract() -> None:
    output = review(
        "Things to buy for the week, all of it from the market in the town:\n\neggs and milk, and a loaf of bread."
    )
    assert "does not read like a contract" in output["json"]["dossier"]["verdict"]


def test_a_blank_text_has_no_clause_and_the_workflow_refuses_it() -> None:
    assert extracted(" \r\n\t")["clauses"] == []
    rule = (load("workflow.yaml").input_schema or {})["properties"]["contract"]
    assert rule["minLength"] == 1
    assert not re.search(rule["pattern"], " \n\t")


def test_a_megabyte_without_headings_stays_bounded() -> None:
    text = "The Customer shall pay the fee in time. Provider may suspend access.\n\n" * 15_000
    extract = extracted(text)
    assert 1 < len(extract["clauses"]) <= 500
    assert len(json.dumps(extract)) < 10 * 2**20


def test_the_same_input_gives_the_same_bytes() -> None:
    assert json.dumps(review(SAAS)) == json.dumps(review(SAAS))


# ------------------------------------------------------------------------------------------------- the chat workflow


def test_the_chat_workflow_keeps_only_what_the_model_can_prove() -> None:
    def classify(given: Any) -> Any:
        sentence = "shall be governed by the laws of Atlantis"
        real = " ".join(given["clause"]["text"].split()[-6:])
        claim = {"rule": "sole-discretion", "topic": "general", "weight": 0.4, "why": "it is said so"}
        return {"topics": ["general"], "findings": [{**claim, "quote": sentence}, {**claim, "quote": real}]}

    def write(given: Any) -> Any:
        return agents.write_report(context(), given)

    walk = Walk(load("workflow-chat.yaml"), {"risk-model": classify, "report-writer": write})
    output = walk.run(LICENSE)
    for e in output["json"]["dossier"]["entries"]:
        assert len(e["findings"]) == 1, "the invented quotation is gone, the real one is placed"
    for span in spans(output):
        assert LICENSE[span["start"] : span["end"]] == span["quote"]


def test_the_model_is_told_the_same_words_as_the_rules_use() -> None:
    agent = load("workflow-chat.yaml").agents["risk-model"]
    properties = (agent.output_schema or {})["properties"]
    assert properties["topics"]["items"]["enum"] == list(TOPICS)
    assert properties["findings"]["items"]["properties"]["rule"]["enum"] == [rule.name for rule in RULES]


def test_the_policy_names_only_rules_and_subjects_that_exist() -> None:
    policy = json.loads((HOME / "policy.json").read_text(encoding="utf-8"))
    assert {rule["finding"] for rule in policy["rules"] if "finding" in rule} <= {rule.name for rule in RULES}
    topics = {rule["topic"] for rule in policy["rules"] if "topic" in rule} | {
        need["topic"] for need in policy["required"]
    }
    assert topics | {rule.topic for rule in RULES} <= set(TOPICS)


# ------------------------------------------------------------------------------------------------- the reviewer


def drafted() -> tuple[Any, str]:
    output = review(LICENSE)
    return {"contract": LICENSE, "dossier": output["json"]["dossier"]}, output["markdown"]


def scored(goal: Any, markdown: str) -> Any:
    return agents.review_report(
        context(), {"goal": goal, "results": [{"agent": "w", "output": {"markdown": markdown}}]}
    )


def test_the_reviewer_finds_what_was_taken_out_or_made_up() -> None:
    goal, good = drafted()
    assert scored(goal, good)["score"] == 1.0
    duty = next(d for e in goal["dossier"]["entries"] for d in e["duties"] if d["id"] == "4.2")
    without = "\n".join(line for line in good.splitlines() if plain_to_markdown(duty["act"]) not in line)
    assert scored(goal, without)["missing_duties"] == ["4.2"]
    clause = re.sub(r"### Section 8.*?(?=\n## )", "", good, flags=re.S)
    assert scored(goal, clause)["missing_clauses"] == ["8"]
    invented = scored(goal, good + '\n> "You owe us a fortune."\n')
    assert invented["criteria"]["evidence"] < 1.0
    assert "You owe us a fortune" in invented["feedback"][0]
    hollow = scored(goal, good + "\n## 99. Nothing\n")
    assert (hollow["score"], hollow["criteria"]["structure"]) == (0.0, 0.0)
    assert scored(goal, "")["score"] == 0.0
    assert scored(goal, good + "word " * 20_000)["criteria"]["length"] < 0.2


def test_the_reviewer_does_not_look_at_the_round() -> None:
    goal, good = drafted()
    given = {"goal": goal, "results": [{"agent": "w", "output": {"markdown": good[:3000]}}]}
    scores = [agents.review_report(context(), {**given, "round": n})["score"] for n in (1, 2, 3)]  # type: ignore[typeddict-unknown-key]
    assert len(set(scores)) == 1
    assert scores[0] < 0.8
