"""The pieces a report is made of. Each says which section it belongs to, how much it matters and what it covers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from contract_review.markdown import plain_to_markdown, quotation
from contract_review.shapes import Dossier, Duty, Entry, Finding, Reading
from contract_review.spans import even, shorten

SECTIONS = (
    "Summary",
    "Clauses that need attention",
    "What the contract does not say",
    "Parties, dates and money",
    "Clause by clause",
    "What must be done, and what must not",
    "What is allowed",
    "Other points",
    "Defined terms",
    "About this review",
)
_KINDS = {"must": 5, "must_not": 5, "may": 6}


class Block(NamedTuple):
    """``rank`` 0 is always written; above, lower goes first. ``covers``: ``clause:4``, ``duty:4.1`` or nothing."""

    section: int
    rank: int
    text: str
    covers: str = ""


def all_blocks(dossier: Dossier) -> Iterator[Block]:
    """Every block the dossier gives, in the order in which they stand in the report."""
    yield Block(0, 0, _summary(dossier))
    for entry in sorted(dossier["entries"], key=lambda entry: -entry["score"]):
        if entry["flagged"]:
            yield Block(1, 1, flagged_clause(entry), f"clause:{entry['id']}")
    for missing in dossier["coverage"]["missing"]:
        yield Block(2, 2, f"- **{missing['topic'].capitalize()}**: no clause found. {missing['position']}")
    yield from _facts(dossier)
    yield Block(4, 2, _overview(dossier))
    for entry in dossier["entries"]:
        for duty in entry["duties"]:
            yield Block(_KINDS[duty["kind"]], _KINDS[duty["kind"]], _duty(entry, duty), f"duty:{duty['id']}")
    for entry in dossier["entries"]:
        if entry["findings"] and not entry["flagged"]:
            yield Block(7, 7, _other(entry))
    if dossier["facts"]["terms"]:
        yield Block(
            8,
            8,
            "\n".join(f"- {plain_to_markdown(term['evidence']['quote'], 160)}" for term in dossier["facts"]["terms"]),
        )
    yield Block(9, 0, _about(dossier))


def place(entry: Entry) -> str:
    """``Section 4, Redistribution``, or the title alone where the contract does not number."""
    title = plain_to_markdown(entry["title"], 80)
    return f"Section {entry['number']}, {title}" if entry["number"] else f"“{title}”"


def flagged_clause(entry: Entry) -> str:
    name = f"Section {entry['number']}: " if entry["number"] else ""
    lines = [
        f"### {name}{plain_to_markdown(entry['title'], 80)}",
        "",
        f"Risk: **{entry['level']}** ({entry['score']:.2f}).",
        "",
    ]
    shown: set[str] = set()
    for finding in entry["findings"]:
        lines += [_finding(finding), ""]
        lines += _quote_once(finding["evidence"]["quote"], shown)
    for breach in entry["breaches"]:
        lines += [f"Policy ({breach['severity']}): {breach['title']}.", ""]
        lines += _quote_once(breach["evidence"]["quote"], shown)
    if entry["reading"]:
        lines += _reading(entry["reading"])
    return "\n".join(lines).rstrip()


def _finding(finding: Finding) -> str:
    return f"- {plain_to_markdown(finding['why'], 300).capitalize()}."


def _quote_once(quote: str, shown: set[str]) -> list[str]:
    if quote in shown:
        return []
    shown.add(quote)
    return [quotation(quote), ""]


def _reading(reading: Reading) -> list[str]:
    lines = []
    if reading["binds"]:
        lines.append(f"- Binds: {', '.join(plain_to_markdown(who, 60) for who in reading['binds'])}.")
    if reading["mutual"]:
        lines.append("- It binds both sides alike.")
    lines += [f"- Condition: {plain_to_markdown(span['quote'], 160)}" for span in reading["conditions"][:2]]
    exceptions = [span for span in reading["exceptions"] if span not in reading["conditions"]]
    lines += [f"- Exception: {plain_to_markdown(span['quote'], 160)}" for span in exceptions[:2]]
    if reading["terms"]:
        lines.append(
            f"- Read it with the definitions of {', '.join(plain_to_markdown(t, 60) for t in reading['terms'])}."
        )
    lines += [f"- **To do:** {advice}" for advice in reading["advice"]]
    return lines


def _summary(dossier: Dossier) -> str:
    facts, entries = dossier["facts"], dossier["entries"]
    lines = [f"**{dossier['verdict']}**", ""]
    lines.append(f"The text has {facts['words']:,} words in {len(entries)} clauses.")
    lines.append("")
    for entry in sorted((e for e in entries if e["flagged"]), key=lambda e: -e["score"])[:5]:
        reason = entry["findings"][0]["why"] if entry["findings"] else entry["breaches"][0]["title"]
        lines.append(f"- {place(entry)}: {reason}.")
    return "\n".join(lines)


def _facts(dossier: Dossier) -> Iterator[Block]:
    facts = dossier["facts"]
    for party in facts["parties"]:
        yield Block(
            3, 3, f"- Party: {plain_to_markdown(party['name'], 100)}, called “{plain_to_markdown(party['role'], 60)}”"
        )
    bound = list(dict.fromkeys(duty["who"] for entry in dossier["entries"] for duty in entry["duties"]))
    roles = [role for role in facts["roles"] if any(role.lower() in who.lower() for who in bound)]
    if roles and not facts["parties"]:
        yield Block(3, 3, f"- No party is named; it speaks of {', '.join(roles)}.")
    for name, values in (("Date", facts["dates"]), ("Amount", facts["amounts"])):
        for value in values[:20]:
            yield Block(3, 3, f"- {name}: {value['value']} (“{plain_to_markdown(value['evidence']['quote'], 60)}”)")


def _overview(dossier: Dossier) -> str:
    lines = ["| Clause | Subjects | Risk |", "|---|---|---|"]
    for entry in dossier["entries"]:
        name = f"{entry['number']}. " if entry["number"] else ""
        subjects = ", ".join(entry["topics"]) or "not recognised"
        lines.append(
            f"| {name}{plain_to_markdown(entry['title'], 60)} | {subjects} | {entry['level']} ({entry['score']:.2f}) |"
        )
    return "\n".join(lines)


def _duty(entry: Entry, duty: Duty) -> str:
    """The duty in the contract's words, from its verb on."""
    whole = even(duty["evidence"]["quote"])
    at = whole.find(duty["act"])
    words = shorten(whole[at:], 170) if at >= 0 else duty["act"]
    return f"- **{plain_to_markdown(duty['who'], 80)}** {plain_to_markdown(words.rstrip(';:'))} ({place(entry)})"


def _other(entry: Entry) -> str:
    reasons = "; ".join(plain_to_markdown(finding["why"], 300) for finding in entry["findings"])
    positions = " ".join(breach["position"] for breach in entry["breaches"])
    quoted = quotation(entry["findings"][0]["evidence"]["quote"])
    return f"**{place(entry)}**: {reasons}. {positions}".rstrip() + f"\n\n{quoted}"


def _about(dossier: Dossier) -> str:
    aside = [f"“{plain_to_markdown(part['title'], 80)}” ({part['why']})" for part in dossier["set_aside"]]
    lines = [
        "Every risk was found in the wording and compared with the policy file; every quotation is verbatim.",
        "This is not legal advice.",
    ]
    if aside:
        lines.append(f"Not reviewed: {'; '.join(aside[:10])}.")
    return "\n\n".join(lines)
