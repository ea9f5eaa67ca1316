"""Agents: the facts of the contract, and the contract cut into clauses with who must do what in each."""

from __future__ import annotations

import re
from typing import TypedDict

from contract_review import facts
from contract_review.duties import find_duties
from contract_review.sections import Section, split_sections
from contract_review.shapes import Clause, Context, Extract, Facts, SetAside
from contract_review.spans import shorten

_FORM = re.compile(r"\b(?:how to|sample|form of|template|example)\b", re.I)
_CLOSING = re.compile(r"^(?:END OF|IN WITNESS)\b")


class FactsInput(TypedDict):
    text: str


class ExtractInput(TypedDict):
    text: str
    facts: Facts


def find_facts(ctx: Context, input: FactsInput) -> Facts:
    """What the text says as a whole. Where it is not English: only its dates, amounts and section numbers."""
    text = input["text"]
    english = facts.is_english(text)
    parties = facts.find_parties(text) if english else []
    ctx.log.info("facts_found", english=english, parties=len(parties))
    return {
        "title": facts.title_of(text),
        "language": "en" if english else "unrecognised",
        "words": facts.count_words(text),
        "parties": parties,
        "roles": facts.find_roles(text, parties) if english else [],
        "dates": facts.find_dates(text),
        "amounts": facts.find_amounts(text),
        "terms": facts.find_terms(text) if english else [],
        "numbers": [section.number for section in split_sections(text) if section.number],
    }


def extract_clauses(ctx: Context, input: ExtractInput) -> Extract:
    """The clauses, and what is not one. No clause comes out of a blank text: let a check of the workflow say so.

    ``config.max_clauses`` (500) bounds the number of clauses: neighbours are joined above it. Where the text is not
    English, sections are still cut, but no duties are looked for.
    """
    text, known = input["text"], input["facts"]
    roles = facts.role_words(known["roles"]) if known["language"] == "en" else None
    clauses: list[Clause] = []
    set_aside: list[SetAside] = []
    for section in split_sections(text, int(ctx.config.get("max_clauses", 500))):
        why = _not_a_clause(text, section)
        if why:
            title = section.title or "Opening"
            set_aside.append({"title": title, "start": section.start, "end": section.end, "why": why})
        else:
            clauses.append(_clause(text, section, len(clauses) + 1, roles))
        ctx.progress()
    ctx.log.info("clauses_extracted", clauses=len(clauses), set_aside=len(set_aside))
    return {"clauses": clauses, "set_aside": set_aside}


def _clause(text: str, section: Section, position: int, roles: frozenset[str] | None) -> Clause:
    body = text[section.start : section.end].rstrip()
    clause_id = section.number.lower() or f"p{position}"
    return {
        "id": clause_id,
        "number": section.number,
        "title": section.title or shorten(body[:200], 50),
        "start": section.start,
        "end": section.start + len(body),
        "text": body,
        "duties": [] if roles is None else find_duties(clause_id, body, section.start, roles),
    }


def _not_a_clause(text: str, section: Section) -> str | None:
    """Why a section is not reviewed, or None. Numbered sections always are."""
    if section.number:
        return None
    body = text[section.start : section.end]
    if _CLOSING.match(section.title):
        return "the closing of the document"
    if section.title and _FORM.search(section.title):
        return "a form to copy, not a term"
    if (
        section.start == 0
        and section.end < len(text)
        and not re.search(r"\b(?:shall|must|will|agrees?|may)\s+(?!concern)[a-z]", body)
    ):
        return "the opening, which binds nobody to anything"
    return None
