"""Agent: ties a language model's answer to the text. A finding whose quotation is not in the clause is dropped."""

from __future__ import annotations

import re
from typing import TypedDict

from contract_review.risk import combined, level
from contract_review.shapes import Assessment, Clause, Context, Finding
from contract_review.spans import quote
from contract_review.topics import TOPICS


class Claim(TypedDict):
    rule: str
    topic: str
    weight: float
    why: str
    quote: str


class Answer(TypedDict):
    topics: list[str]
    findings: list[Claim]


class GroundInput(TypedDict):
    clause: Clause
    answer: Answer


def ground_findings(ctx: Context, input: GroundInput) -> Assessment:
    """The model's findings with offsets, heaviest first; the score follows from their weights as everywhere else."""
    clause, answer = input["clause"], input["answer"]
    findings = [found for claim in answer["findings"] if (found := _locate(claim, clause)) is not None]
    dropped = len(answer["findings"]) - len(findings)
    if dropped:
        ctx.log.info("findings_without_evidence_dropped", clause=clause["id"], dropped=dropped)
    score = combined([finding["weight"] for finding in findings])
    return {
        "clause": clause,
        "topics": [topic for topic in TOPICS if topic in answer["topics"]],
        "findings": sorted(findings, key=lambda finding: -finding["weight"]),
        "score": score,
        "level": level(score),
    }


def _locate(claim: Claim, clause: Clause) -> Finding | None:
    """The claim with the place of its quotation; white space may differ, words may not."""
    words = claim["quote"].strip(' \t\r\n"“”').split()
    match = re.search(r"\s+".join(re.escape(word) for word in words), clause["text"]) if words else None
    if match is None:
        return None
    return {
        "rule": claim["rule"],
        "topic": claim["topic"],
        "weight": min(max(claim["weight"], 0.01), 1.0),
        "why": claim["why"],
        "evidence": quote(clause["text"], match.start(), match.end(), base=clause["start"]),
    }
