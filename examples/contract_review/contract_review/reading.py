"""Agent: a second, closer reading of one flagged clause, sentence by sentence around what was found."""

from __future__ import annotations

import re
from typing import TypedDict

from contract_review.risk import combined, level
from contract_review.sentences import holding, sentences
from contract_review.shapes import Context, Reading, Span, Term, Verdict
from contract_review.spans import quote

_CONDITION = re.compile(
    r"\b(?:if|unless|provided\s+that|in\s+the\s+event|only\s+to\s+the\s+extent)\b(?:\([^()]*\)|[^.;()]){4,}", re.I
)
_EXCEPTION = re.compile(
    r"\b(?:unless|except(?:ing|\s+(?:as|for|that|where))?|other\s+than|excluding|save\s+(?:for|as)|notwithstanding|does\s+not\s+apply)\b(?:\([^()]*\)|[^.;()]){4,}",
    re.I,
)
_MUTUAL = re.compile(
    r"\b(?:each|either|neither|both)\s+part(?:y|ies)\b|\bmutual(?:ly)?\b|\bthe\s+other\s+party\b", re.I
)
_REFERENCE = re.compile(
    r"\b(?:Sections?|Clauses?|Articles?)\s+(\d{1,3})(?:\.\d+)*(?:\([a-z]\))?(?!\w|\s+(?:of\s+(?:the|Regulation)\s+(?!Agreement|License)|GDPR))"
)
#: How much an exception, or the same duty on both sides, takes off a finding.
_EXCEPTION_FACTOR, _MUTUAL_FACTOR = 0.8, 0.8
_SHOWN = 4


class ReadInput(TypedDict):
    verdict: Verdict
    terms: list[Term]
    numbers: list[str]


def read_closely(ctx: Context, input: ReadInput) -> Reading:
    """Who is bound, on what conditions, with what exceptions, and which defined terms carry the meaning.

    An exception in the sentence of a finding, or a duty that binds both sides alike, lowers the finding's weight; the
    score of the reading is made of the weights so lowered.
    """
    assessment = input["verdict"]["assessment"]
    clause = assessment["clause"]
    text, spans = clause["text"], list(sentences(clause["text"]))
    weights, touched, mutual = [], set(), bool(assessment["findings"])
    for finding in assessment["findings"]:
        start, end = holding(spans, finding["evidence"]["start"] - clause["start"])
        touched.add((start, end))
        weight = finding["weight"] * (_EXCEPTION_FACTOR if _EXCEPTION.search(text, start, end) else 1.0)
        both = _MUTUAL.search(text, start, end) is not None
        weights.append(weight * (_MUTUAL_FACTOR if both else 1.0))
        mutual = mutual and both
        ctx.progress()
    read = sorted(touched) or spans
    references = list(dict.fromkeys(_REFERENCE.findall(text)))
    dangling = [number for number in references if any(input["numbers"]) and number not in input["numbers"]]
    score = combined(weights)
    return {
        "clause_id": clause["id"],
        "binds": list(dict.fromkeys(duty["who"] for duty in clause["duties"] if duty["kind"] != "may"))[:_SHOWN],
        "mutual": mutual,
        "conditions": _spans(_CONDITION, text, read, clause["start"]),
        "exceptions": _spans(_EXCEPTION, text, read, clause["start"]),
        "terms": [term["term"] for term in input["terms"] if re.search(rf"\b{re.escape(term['term'])}\b", text)][:8],
        "references": references,
        "dangling": dangling,
        "score": score,
        "level": level(score),
        "advice": _advice(input["verdict"], mutual, dangling),
    }


def _spans(pattern: re.Pattern[str], text: str, read: list[tuple[int, int]], base: int) -> list[Span]:
    found = [match for start, end in read for match in pattern.finditer(text, start, end)]
    return [quote(text, match.start(), match.end(), base=base) for match in found[:_SHOWN]]


def _advice(verdict: Verdict, mutual: bool, dangling: list[str]) -> list[str]:
    advice = [breach["position"] for breach in verdict["breaches"]]
    if not mutual and any(
        finding["topic"] in ("liability", "indemnity") for finding in verdict["assessment"]["findings"]
    ):
        advice.append("It protects one side only: ask for the same in return.")
    advice += [
        f"It refers to section {number}, which this text does not have: ask what is meant." for number in dangling
    ]
    return list(dict.fromkeys(advice))
