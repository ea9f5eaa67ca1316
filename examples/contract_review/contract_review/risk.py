"""Agent: what one clause is about and what risk its wording carries, with the evidence."""

from __future__ import annotations

import math
from typing import TypedDict

from contract_review.rules import RULES, Rule
from contract_review.sentences import holding, sentences
from contract_review.shapes import Assessment, Clause, Context, Finding, Level
from contract_review.spans import Evened, even, quote
from contract_review.topics import find_topics


class ClassifyInput(TypedDict):
    clause: Clause
    language: str


def classify_risk(ctx: Context, input: ClassifyInput) -> Assessment:
    """Topics, findings with evidence, score and level of one clause.

    A clause in a language the rules do not know is ``unread``: nothing is claimed about it.
    """
    clause = input["clause"]
    if input["language"] != "en":
        return {"clause": clause, "topics": [], "findings": [], "score": 0.0, "level": "unread"}
    findings = find_risks(clause)
    score = combined([finding["weight"] for finding in findings])
    ctx.log.info("clause_classified", clause=clause["id"], score=score, findings=len(findings))
    return {
        "clause": clause,
        "topics": find_topics(clause["title"], clause["text"]),
        "findings": findings,
        "score": score,
        "level": level(score),
    }


def find_risks(clause: Clause) -> list[Finding]:
    """One finding per rule that matches, at its first match, heaviest first."""
    spans = list(sentences(clause["text"]))
    evened = Evened(clause["text"])
    body = _body_start(clause)
    found = [finding for rule in RULES if (finding := _finding(rule, clause, spans, evened, body)) is not None]
    return sorted(found, key=lambda finding: -finding["weight"])


def _body_start(clause: Clause) -> int:
    """Where, in the evened text, the clause's own words begin: behind its first line, if that is only its heading."""
    line = even(clause["text"].lstrip().split("\n", 1)[0])
    return len(line) if len(line) < 100 and line.strip("#*: ").endswith(clause["title"]) else 0


def _finding(rule: Rule, clause: Clause, spans: list[tuple[int, int]], evened: Evened, body: int) -> Finding | None:
    match = rule.pattern.search(evened.text, body)
    if match is None:
        return None
    at = evened.origin(match.start())
    start, end = holding(spans, at)
    end = max(end, evened.origin(match.end() - 1) + 1)
    evidence = quote(clause["text"], start, end, base=clause["start"], around=at)
    return {"rule": rule.name, "topic": rule.topic, "weight": rule.weight, "why": rule.why, "evidence": evidence}


def combined(weights: list[float]) -> float:
    """The weights taken as independent doubts, in [0, 1], to two places."""
    return round(1.0 - math.prod(1.0 - weight for weight in weights), 2)


def level(score: float) -> Level:
    """``high`` from 0.5, ``medium`` from 0.3, ``low`` above 0."""
    if score >= 0.5:
        return "high"
    if score >= 0.3:
        return "medium"
    return "low" if score > 0 else "none"
