"""Who must, must not and may do what: one entry per verb of obligation, prohibition or permission."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from contract_review.sentences import sentences
from contract_review.shapes import Duty, Span
from contract_review.spans import even, quote

_MODAL = re.compile(
    r"\b(?:(?P<not>(?:must|shall|will|may)\s+not|agrees?\s+not\s+to|(?:is|are)\s+prohibited\s+from)"
    r"|(?P<must>must|shall|(?:is|are)\s+(?:obliged\s+to|obligated\s+to|required\s+to|(?:solely\s+)?responsible\s+for)|(?:agrees?|undertakes?|covenants?)\s+to)"
    r"|(?P<may>may|is\s+entitled\s+to|are\s+entitled\s+to|hereby\s+grants?|grants?\s+to)"
    r"|(?P<will>will))\s+(?P<rest>[^\s,;.]+)",
    re.I,
)
#: Verbs after which "shall" states a meaning or an effect, not a duty.
_EFFECT = re.compile(
    r"(?:(?:in|for)\s+)?(?:mean|include|constitute|terminate|expire|survive|remain|apply|continue|prevail|supersede|have|inure|"
    r"commence|begin|become|renew|govern|exceed|extend|affect|limit|operate|result|create|imply|represent|differ|contain|"
    r"take\s+effect|be\s+(?:deemed|governed|construed|interpreted|considered|liable|effective|binding|void|invalid|"
    r"enforceable|unenforceable|renewed|extended|replaced|to\s+you|severed|understood|under))\b",
    re.I,
)
_EXCLUSION = re.compile(r"\bin\s+no\s+event\b|\bnothing\s+(?:here)?in\b|\bneither\b[^.]{0,80}\bliable\b", re.I)
_SUBJECT_END = re.compile(r"^(?:.*(?:[,;:(]|\b(?:and|or|but|if|then|unless|provided that)\b)\s*)?", re.S | re.I)
_ITEM = re.compile(r"^\s*(?:\(?\w{1,4}[.)]\s*|\d+(?:\.\d+)*\.?\s+)+")
_NEW_SUBJECT = re.compile(r"(?:the|an?|any|each|every|all|no|such|this|that|its|their|your)\b|[A-Z]")
_ACT_WORDS = 9
#: Characters of evidence: there are many duties, and the clause itself holds the rest.
_EVIDENCE = 300


class _Found(NamedTuple):
    kind: Literal["must", "must_not", "may"]
    who: str
    act: str
    evidence: Span


def find_duties(clause_id: str, text: str, base: int, roles: frozenset[str]) -> list[Duty]:
    """The duties in ``text``, which begins at ``base`` in the contract, in order, each wording once.

    "Will" counts only behind one of ``roles`` (lower-case), because elsewhere it is just the future.
    """
    found: dict[tuple[str, str, str], Duty] = {}
    for start, end in sentences(text):
        for duty in _in_sentence(text, start, end, base, roles):
            key = (duty.kind, duty.who, duty.act)
            if key not in found:
                found[key] = {
                    "id": f"{clause_id}.{len(found) + 1}",
                    "kind": duty.kind,
                    "who": duty.who,
                    "act": duty.act,
                    "evidence": duty.evidence,
                }
    return list(found.values())


def _in_sentence(text: str, start: int, end: int, base: int, roles: frozenset[str]) -> Iterator[_Found]:
    sentence = text[start:end]
    if _EXCLUSION.search(sentence):
        return
    previous, who = 0, ""
    for modal in _MODAL.finditer(sentence):
        after = sentence[modal.start("rest") : modal.start("rest") + 60]
        subject = _subject(sentence[previous : modal.start()], who, roles)
        kind = _kind(modal, subject)
        skip = _states_effect(modal) and _EFFECT.match(after) is not None
        skip = skip or _is_subordinate(sentence[max(0, modal.start() - 20) : modal.start()])
        if modal["will"] is not None or kind == "may":
            skip = skip or not _is_role(subject, roles)
        if not skip and subject:
            act = " ".join(even(sentence[modal.start() : modal.start() + 200]).split(" ")[:_ACT_WORDS])
            yield _Found(
                kind,
                subject,
                act.rstrip(",;:."),
                quote(text, start, end, base=base, around=start + modal.start(), limit=_EVIDENCE),
            )
            who = subject
        previous = modal.start("rest")


def _states_effect(modal: re.Match[str]) -> bool:
    """Whether the verb can state a plain effect: "shall" and "will" can, "must" and "agrees to" always bind."""
    return modal[0].lower().startswith(("shall", "will"))


def _kind(modal: re.Match[str], subject: str) -> Literal["must", "must_not", "may"]:
    if modal["not"] is not None or re.match(r"(?:neither|no)\b", subject, re.I):
        return "must_not"
    return "may" if modal["may"] is not None else "must"


def _subject(before: str, who: str, roles: frozenset[str]) -> str:
    """Who stands directly before the verb: the role that ends ``before``, else its words from the last break on.

    ``who`` is the subject of the verb before in the same sentence; it goes on where no new one is named.
    """
    plain = even(_ITEM.sub("", before)).strip('"“”()')
    words = plain.split(" ")
    for size in (5, 4, 3, 2, 1):
        if len(words) >= size and " ".join(words[-size:]).lower() in roles:
            return " ".join(words[-size:])
    last = _SUBJECT_END.sub("", plain, count=1)
    if who and not _NEW_SUBJECT.match(last):
        return who
    return " ".join((last or plain).split(" ")[-8:])


def _is_role(subject: str, roles: frozenset[str]) -> bool:
    return subject.lower() in roles


def _is_subordinate(before: str) -> bool:
    """Whether the verb stands in a relative clause ("fees that shall …"), which describes and does not bind."""
    return re.search(r"\b(?:which|that|who|as)\s*$", before, re.I) is not None
