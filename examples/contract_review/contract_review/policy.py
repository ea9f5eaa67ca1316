"""Agents: each clause, and the contract as a whole, against a policy file.

The policy is a JSON file beside the workflow, named by ``config.policy`` (``policy.json``). A rule fires on a
``finding`` of the classifier (unless a phrase of ``without`` stands in the clause), or, for a ``topic``, on a
``measure`` (days, years, percent) above ``over`` or below ``under`` in a sentence that has the word ``near``.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, TypedDict

from contract_review.measures import measures
from contract_review.sentences import sentences
from contract_review.shapes import Assessment, Breach, Context, Coverage, Span, Verdict
from contract_review.spans import even, quote

HOME = Path(__file__).resolve().parent.parent


class CheckInput(TypedDict):
    assessment: Assessment


class CoverageInput(TypedDict):
    readable: bool
    topics: list[list[str]]


async def check_policy(ctx: Context, input: CheckInput) -> Verdict:
    """Where one clause departs from the policy. Flagged: it does so more than as a ``note``, or its risk is high."""
    assessment = input["assessment"]
    policy = await asyncio.to_thread(_load, ctx.config)
    breaches = [breach for rule in policy["rules"] if (breach := _breach(rule, assessment)) is not None]
    serious = any(breach["severity"] != "note" for breach in breaches)
    return {"assessment": assessment, "breaches": breaches, "flagged": serious or assessment["level"] == "high"}


def check_coverage(ctx: Context, input: CoverageInput) -> Coverage:
    """Which subjects the policy requires and no clause has. Claims nothing about a text that could not be read."""
    if not input["readable"]:
        return {"checked": False, "present": [], "missing": []}
    required = _load(ctx.config)["required"]
    present = {topic for topics in input["topics"] for topic in topics}
    return {
        "checked": True,
        "present": [need["topic"] for need in required if need["topic"] in present],
        "missing": [need for need in required if need["topic"] not in present],
    }


def _load(config: dict[str, Any]) -> dict[str, Any]:
    path = HOME / str(config.get("policy", "policy.json"))
    policy: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return policy


def _breach(rule: dict[str, Any], assessment: Assessment) -> Breach | None:
    evidence = _by_finding(rule, assessment) if "finding" in rule else _by_measure(rule, assessment)
    if evidence is None:
        return None
    return {
        "rule": rule["id"],
        "title": rule["title"],
        "severity": rule["severity"],
        "position": rule["position"],
        "evidence": evidence,
    }


def _by_finding(rule: dict[str, Any], assessment: Assessment) -> Span | None:
    text = even(assessment["clause"]["text"]).lower()
    if any(phrase in text for phrase in rule.get("without", [])):
        return None
    return next((f["evidence"] for f in assessment["findings"] if f["rule"] == rule["finding"]), None)


def _by_measure(rule: dict[str, Any], assessment: Assessment) -> Span | None:
    if rule["topic"] not in assessment["topics"]:
        return None
    clause = assessment["clause"]
    for start, end in sentences(clause["text"]):
        sentence = clause["text"][start:end]
        if rule["near"] not in sentence.lower():
            continue
        for value, position in measures(rule["measure"], sentence):
            if value > rule.get("over", float("inf")) or value < rule.get("under", 0.0):
                return quote(clause["text"], start, end, base=clause["start"], around=start + position)
    return None
