"""Risks that can be seen in the wording of a clause: pattern, weight and reason. Patterns never cross a full stop.

Weights add up as independent doubts: a clause scores ``1 - (1-a)(1-b)…`` over the rules that match.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Rule(NamedTuple):
    name: str
    topic: str
    weight: float
    why: str
    pattern: re.Pattern[str]


def _rule(name: str, topic: str, weight: float, why: str, pattern: str) -> Rule:
    return Rule(name, topic, weight, why, re.compile(pattern, re.I))


RULES: Final = (
    _rule(
        "liability-excluded",
        "liability",
        0.5,
        "one side's liability is excluded altogether",
        r"\bin\s+no\s+event\b[^.]{0,250}\bliab(?:le|ility)\b"
        r"(?!(?:\s+to(?:\s+\w+){1,4})?\s+for\s+(?:any\s+)?(?:indirect|special|incidental|consequential|punitive))"
        r"|\b(?:shall|will) (?:not|never) be liable\b|\b(?:shall|will) have no liability\b",
    ),
    _rule(
        "liability-uncapped",
        "liability",
        0.6,
        "liability is without limit",
        r"\bunlimited liability\b|\bliab(?:le|ility)\b[^.]{0,60}\b(?:is|be) unlimited\b"
        r"|\bwithout (?:any )?limit\b[^.]{0,40}\bliab",
    ),
    _rule(
        "liability-capped",
        "liability",
        0.2,
        "what can be recovered is capped",
        r"\b(?:aggregate|total|maximum|entire)\b[^.]{0,40}\bliability\b[^.]{0,250}\b(?:exceed|limited to)\b",
    ),
    _rule(
        "consequential-excluded",
        "liability",
        0.15,
        "indirect or consequential loss cannot be recovered",
        r"\b(?:indirect|consequential|incidental)\b[^.]{0,80}\b(?:damages?|loss(?:es)?)\b",
    ),
    _rule(
        "warranty-disclaimed",
        "warranty",
        0.4,
        "no warranty is given: defects are the user's risk",
        r"\bAS[ -]IS\b|\bwithout\s+(?:any\s+)?warrant(?:y|ies)\b|\bdisclaims?\b[^.]{0,80}\bwarrant",
    ),
    _rule(
        "risk-assumed",
        "warranty",
        0.15,
        "the user alone bears the risk of using it",
        r"\bassumes?\s+(?:any|all)\s+risks?\b|\bat (?:its|your) (?:own|sole) risk\b",
    ),
    _rule(
        "indemnity-given",
        "indemnity",
        0.5,
        "one side pays for claims against the other",
        r"\bindemnif(?:y|ies)\b|\bhold\b[^.]{0,60}\bharmless\b",
    ),
    _rule(
        "licence-ends-on-suit",
        "patents",
        0.45,
        "bringing a patent claim ends the patent licence at once",
        r"\bpatent\s+litigation\b[^.]{0,450}\bterminate\b",
    ),
    _rule(
        "licence-irrevocable",
        "licence grant",
        0.2,
        "the licence cannot be taken back by whoever grants it",
        r"\birrevocable\b[^.]{0,250}\blicen[cs]e\b",
    ),
    _rule(
        "submission-licensed",
        "contributions and feedback",
        0.35,
        "what is handed in is licensed or given away by handing it in",
        r"\bsubmitted\b[^.]{0,200}\bshall\s+be\s+under\b"
        r"|\bfeedback\b[^.]{0,200}\b(?:assigns?|licen[cs]e|own|freely|without (?:any )?(?:obligation|payment))\b",
    ),
    _rule(
        "rights-assigned",
        "intellectual property",
        0.4,
        "rights pass to the other side for good",
        r"\bhereby\s+assigns?\b|\bwork made for hire\b|\bassigns? (?:all|any) (?:of its )?right",
    ),
    _rule(
        "name-use-reserved",
        "intellectual property",
        0.1,
        "names and marks may not be used",
        r"\bnot\s+grant\s+permission\s+to\s+use\b|\bno (?:right|licen[cs]e) to use\b[^.]{0,60}\bmarks?\b",
    ),
    _rule(
        "conditions-on-copying",
        "redistribution",
        0.2,
        "copies may be passed on only under conditions",
        r"\bdistribut\w*\b[^.]{0,250}\bprovided\s+that\b",
    ),
    _rule(
        "termination-convenience",
        "termination",
        0.3,
        "it may be ended without any reason",
        r"\bterminate\b[^.]{0,100}\b(?:for convenience|at any time|for any (?:or no )?reason|without cause)\b",
    ),
    _rule(
        "termination-immediate",
        "termination",
        0.25,
        "it may be ended without time to put things right",
        r"\bterminate\b[^.]{0,80}\b(?:immediately|without (?:prior )?notice)\b|\bimmediately\s+terminate\b",
    ),
    _rule(
        "auto-renewal",
        "renewal",
        0.4,
        "it goes on by itself unless notice is given in time",
        r"\brenews?\s+automatically\b|\bautomatically\s+(?:be\s+)?(?:renews?|renewed|extended?)\b|\bsuccessive\b[^.]{0,60}\b(?:terms?|periods?)\b[^.]{0,80}\bunless\b",
    ),
    _rule(
        "price-increase",
        "payment",
        0.35,
        "one side may raise the price",
        r"\b(?:increase|raise|adjust)s?\b[^.]{0,60}\b(?:fees?|prices?|charges?)\b",
    ),
    _rule("non-refundable", "payment", 0.25, "what is paid does not come back", r"\bnon-?refundable\b|\bno refunds?\b"),
    _rule(
        "late-interest",
        "payment",
        0.15,
        "late payment bears interest",
        r"\binterest\b[^.]{0,80}\b(?:per month|per annum|per year|percent|%)",
    ),
    _rule(
        "changed-by-one-side",
        "changes",
        0.4,
        "one side may change the terms or the service alone",
        r"\bmay\b[^.]{0,60}\b(?:modify|amend|change|update)\b[^.]{0,80}\b(?:terms|agreement|service|policy|policies|documentation)\b",
    ),
    _rule("suspension", "termination", 0.2, "access may be cut off", r"\bmay\b[^.]{0,40}\bsuspend\b"),
    _rule(
        "sole-discretion",
        "general",
        0.2,
        "one side decides alone",
        r"\b(?:sole|absolute)(?: and absolute)? discretion\b",
    ),
    _rule(
        "secrecy-without-end",
        "confidentiality",
        0.4,
        "the duty of secrecy has no end",
        r"\b(?:in perpetuity|perpetual(?:ly)?|indefinitely|without limit (?:in|of) time)\b"
        r"[^.]{0,120}\b(?:confiden|secre)"
        r"|\b(?:confiden|secre)[^.]{0,160}\b(?:in perpetuity|perpetually|indefinitely|without limit (?:in|of) time)\b",
    ),
    _rule(
        "injunction",
        "disputes",
        0.2,
        "a court order can be had without proof of damage",
        r"\binjuncti(?:ve relief|on)\b|\birreparable (?:harm|injury|damage)\b",
    ),
    _rule(
        "liquidated-damages",
        "liability",
        0.45,
        "a fixed sum is owed on breach",
        r"\bliquidated damages\b|\bcontractual penalty\b",
    ),
    _rule(
        "no-competition",
        "non-competition",
        0.5,
        "doing business elsewhere is restricted",
        r"\bnon-?compet"
        r"|\bshall\s+not\s+(?:directly or indirectly )?compete\b"
        r"|\b(?<!non-)(?<!non)exclusively\s+(?:purchase|use|with)\b",
    ),
    _rule(
        "no-soliciting",
        "non-competition",
        0.25,
        "hiring the other side's people is restricted",
        r"\bnot\b[^.]{0,60}\bsolicit\b",
    ),
    _rule(
        "data-use",
        "data protection",
        0.35,
        "data may be used or passed on for the other side's own ends",
        r"\bdata\b[^.]{0,120}\b(?:sell|share|own (?:business )?purposes|improve)\b",
    ),
    _rule(
        "arbitration",
        "disputes",
        0.25,
        "the ordinary courts are given up",
        r"\bbinding\s+arbitration\b|\bwaives?\b[^.]{0,60}\b(?:jury|class action)",
    ),
    _rule(
        "assignable-by-one-side",
        "assignment",
        0.2,
        "the other side may hand the contract to somebody else",
        r"\bmay\s+(?:freely\s+)?assign\b(?![^.]{0,60}\bwith(?:out)? the (?:prior )?(?:written )?consent)",
    ),
    _rule(
        "audit",
        "general",
        0.15,
        "the other side may inspect books or premises",
        r"\b(?:right to|may) (?:inspect|audit)\b",
    ),
)
