"""Agent: scores a draft against the contract and the dossier. It knows nothing of rounds or of earlier drafts."""

from __future__ import annotations

from typing import TypedDict

from contract_review.markdown import empty_sections, markdown_to_plain, quotations
from contract_review.shapes import Context, Dossier, Duty, Entry, Result, Review
from contract_review.spans import even, shorten

#: Characters: shorter is no report; longer than this and half as long again as the contract is not read.
_SHORTEST, _LONGEST = 300, 15_000
_NAMED = 5


class Goal(TypedDict):
    contract: str
    dossier: Dossier


class ReviewInput(TypedDict):
    goal: Goal
    results: list[Result]


def review_report(ctx: Context, input: ReviewInput) -> Review:
    """Five criteria, each in [0, 1]; the score is the lowest, and the feedback says what is missing where."""
    contract, dossier = input["goal"]["contract"], input["goal"]["dossier"]
    markdown = "\n\n".join(result["output"]["markdown"] for result in input["results"])
    quoted, words = quotations(markdown), markdown_to_plain(markdown)
    source = even(contract)
    clauses = [
        entry for entry in dossier["entries"] if entry["flagged"] and not _covered(entry, contract, quoted, words)
    ]
    duties = [duty for duty in _duties(dossier) if even(duty["act"]) not in words]
    untrue = [quote for quote in quoted if not _verbatim(quote, source)]
    empty = empty_sections(markdown) if markdown.strip() else ["the whole report"]
    criteria = {
        "flagged clauses": _share(len(clauses), sum(entry["flagged"] for entry in dossier["entries"])),
        "evidence": _share(len(untrue), len(quoted)),
        "obligations": _share(len(duties), len(_duties(dossier))),
        "structure": 0.0 if empty else 1.0,
        "length": _length(len(markdown), len(contract)),
    }
    score = round(min(criteria.values()), 2)
    ctx.log.info("report_scored", score=score)
    return {
        "score": score,
        "criteria": {name: round(value, 2) for name, value in criteria.items()},
        "feedback": _feedback(clauses, duties, untrue, empty, criteria["length"]),
        "missing_clauses": [entry["id"] for entry in clauses],
        "missing_duties": [duty["id"] for duty in duties],
    }


def _duties(dossier: Dossier) -> list[Duty]:
    return [duty for entry in dossier["entries"] for duty in entry["duties"] if duty["kind"] != "may"]


def _covered(entry: Entry, contract: str, quoted: list[str], words: str) -> bool:
    """A flagged clause is covered where it is named and at least one quotation comes from it."""
    text = even(contract[entry["start"] : entry["end"]])
    return even(entry["title"]).rstrip("…") in words and any(_verbatim(quote, text) for quote in quoted)


def _verbatim(quote: str, source: str) -> bool:
    """Whether every part of the quotation stands in the source; an ellipsis may stand for what was left out."""
    parts = [part.strip() for part in quote.split("…") if part.strip()]
    return bool(parts) and all(part in source for part in parts)


def _share(missing: int, of: int) -> float:
    return 1.0 if of == 0 else 1.0 - missing / of


def _length(length: int, source: int) -> float:
    longest = max(_LONGEST, source * 3 // 2)
    if length < _SHORTEST:
        return length / _SHORTEST
    return min(1.0, longest / length)


def _feedback(
    clauses: list[Entry], duties: list[Duty], untrue: list[str], empty: list[str], length: float
) -> list[str]:
    feedback = [f"Cover the flagged clause “{entry['title']}” with a quotation from it." for entry in clauses[:_NAMED]]
    if duties:
        named = "; ".join(f"{duty['who']} {duty['act']} ({duty['id']})" for duty in duties[:_NAMED])
        more = f" and {len(duties) - _NAMED} more" if len(duties) > _NAMED else ""
        feedback.append(f"{len(duties)} obligation(s) are not mentioned: {named}{more}.")
    feedback += [f"This quotation is not in the contract: “{shorten(quote, 80)}”." for quote in untrue[:_NAMED]]
    feedback += [f"The section “{title}” is empty." for title in empty[:_NAMED]]
    if length < 1.0:
        feedback.append("The report is too long or too short for this contract.")
    return feedback
