"""Agent: everything the steps before found out, as one JSON document. This is the report as data."""

from __future__ import annotations

from typing import TypedDict

from contract_review.shapes import Context, Coverage, Dossier, Entry, Facts, Reading, SetAside, Verdict
from contract_review.topics import TOPICS


class DossierInput(TypedDict):
    """``readings`` is null where no clause was flagged and so none was read again."""

    facts: Facts
    set_aside: list[SetAside]
    verdicts: list[Verdict]
    coverage: Coverage
    readings: list[Reading] | None


def build_dossier(ctx: Context, input: DossierInput) -> Dossier:
    """Clauses in the order of the contract; a closer reading's score and level stand in for the first ones."""
    readings = {reading["clause_id"]: reading for reading in input["readings"] or []}
    entries = [_entry(verdict, readings.get(verdict["assessment"]["clause"]["id"])) for verdict in input["verdicts"]]
    ctx.log.info("dossier_built", clauses=len(entries), flagged=sum(entry["flagged"] for entry in entries))
    return {
        "facts": input["facts"],
        "set_aside": input["set_aside"],
        "verdict": _verdict(entries, input["coverage"]),
        "entries": entries,
        "coverage": input["coverage"],
    }


def _entry(verdict: Verdict, reading: Reading | None) -> Entry:
    assessment = verdict["assessment"]
    clause = assessment["clause"]
    return {
        "id": clause["id"],
        "number": clause["number"],
        "title": clause["title"],
        "start": clause["start"],
        "end": clause["end"],
        "topics": sorted(assessment["topics"], key=TOPICS.index),
        "score": reading["score"] if reading else assessment["score"],
        "level": reading["level"] if reading else assessment["level"],
        "flagged": verdict["flagged"],
        "findings": assessment["findings"],
        "breaches": verdict["breaches"],
        "reading": reading,
        "duties": clause["duties"],
    }


def _verdict(entries: list[Entry], coverage: Coverage) -> str:
    """One sentence: refuse, negotiate, accept with care, accept; or that nothing can be said."""
    if not coverage["checked"]:
        return "No clause recognised: the text does not read as English, so nothing is said about its risks."
    if not any(entry["topics"] for entry in entries):
        return "No clause recognised: the text does not read like a contract."
    severities = [breach["severity"] for entry in entries for breach in entry["breaches"]]
    flagged = sum(entry["flagged"] for entry in entries)
    if "refuse" in severities:
        refused = severities.count("refuse")
        return f"Do not accept as it stands: {refused} point(s) the policy refuses, {flagged} clause(s) flagged."
    if "negotiate" in severities:
        return (
            f"Negotiate: {severities.count('negotiate')} point(s) depart from the policy, {flagged} clause(s) flagged."
        )
    if flagged or severities:
        return f"Acceptable with care: {flagged} clause(s) flagged, {len(severities)} point(s) to know."
    if coverage["missing"]:
        silent = ", ".join(missing["topic"] for missing in coverage["missing"])
        return f"Acceptable as far as it goes, but it says nothing of: {silent}."
    return "Acceptable: nothing in it departs from the policy."
