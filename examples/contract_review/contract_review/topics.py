"""What a clause is about: the subjects of contracts, each with the words that give it away."""

from __future__ import annotations

import re
from typing import Final

from contract_review.spans import even

_SUBJECTS: Final = {
    "definitions": (r"definitions?|interpretation", r"[\"”]\s*(?:form\s+)?(?:shall\s+)?means?\b|[\"”] shall mean"),
    "licence grant": (r"grant|licen[cs]e", r"\bgrants?\b[^.]{0,200}\b(?:licen[cs]e|right)\b"),
    "patents": (r"patent", r"\bpatent\s+(?:licen[cs]e|litigation|claim|right)"),
    "intellectual property": (
        r"intellectual property|ownership|trade\s?marks?",
        r"\bintellectual property\b|\bwork made for hire\b|\bright, title,? and interest\b|\btrademarks,",
    ),
    "contributions and feedback": (
        r"contributions?|feedback",
        r"\bContributions?\b[^.]{0,80}\bsubmitted\b|\bFeedback\b",
    ),
    "redistribution": (r"redistribut|distribution", r"\b(?:reproduce and distribute|redistribut\w+)\b"),
    "confidentiality": (
        r"confidential|non-?disclosure",
        r"\bConfidential Information\b|\bkeep\b[^.]{0,60}\bconfidential\b",
    ),
    "data protection": (r"data protection|privacy|personal data", r"\bpersonal (?:data|information)\b|\bGDPR\b"),
    "security": (r"security", r"\bsecurity (?:measures|incident|breach)|\bdata breach\b"),
    "payment": (r"fees?\b|payment|pricing|charges\b", r"\b(?:pay|invoice[sd]?|fees? (?:is|are|payable|due))\b"),
    "term": (
        r"\bterm\b",
        r"\binitial term\b|agreement remains? in (?:force|effect)\b|\bEffective Date\b[^.]{0,60}\bcontinu",
    ),
    "renewal": (r"renewal", r"\brenew(?:s|ed|al)?\b"),
    "termination": (r"terminat", r"\bterminat(?:e|es|ed|ion)\b"),
    "warranty": (r"warrant", r"\bwarrant(?:y|ies|s)\b|\bAS[ -]IS\b"),
    "liability": (r"liabilit", r"\bliab(?:le|ility)\b"),
    "indemnity": (r"indemni", r"\bindemnif|\bindemnit|\bhold\b[^.]{0,60}\bharmless\b"),
    "insurance": (r"insurance", r"\binsurance\b"),
    "service levels": (r"service levels?|availability|support", r"\b(?:uptime|service credits?|availability of \d)"),
    "governing law": (r"governing law|applicable law|jurisdiction", r"\bgoverned by\b[^.]{0,80}\blaws?\b"),
    "disputes": (
        r"disputes?|arbitration|jurisdiction",
        r"\barbitrat|\b(?:exclusive )?jurisdiction\b|\bcourts? of\b|\bmediation\b",
    ),
    "assignment": (r"assignment|transfer", r"\bassign (?:this|its|any)\b|\bmay assign\b"),
    "restrictions": (r"restrict|acceptable use", r"\b(?:reverse engineer|sublicense, sell|may not copy)\b"),
    "non-competition": (r"non-?compet|non-?solicit|exclusiv", r"\bnon-?compet|\bnon-?solicit|\bshall not solicit\b"),
    "changes": (
        r"amendments?|modification|changes?",
        r"\b(?:amended|modified) only\b|\bmay\b[^.]{0,40}\b(?:amend|modify)\b",
    ),
    "notices": (r"notices?", r"\bnotices?\b[^.]{0,60}\b(?:in writing|sent to|delivered)\b"),
    "force majeure": (r"force majeure", r"\bforce majeure\b|\bbeyond (?:its|their) reasonable control\b"),
    "general": (r"general|miscellaneous|entire agreement", r"\bentire agreement\b|\bseverab|\bwaiver of\b"),
}
TOPICS: Final = tuple(_SUBJECTS)


def find_topics(title: str, text: str) -> list[str]:
    """The subjects a clause touches, in the order of ``TOPICS``; empty where none is recognised."""
    text = even(text)
    return [
        topic
        for topic, (in_title, in_text) in _SUBJECTS.items()
        if re.search(rf"\b(?:{in_title})", title, re.I) or re.search(in_text, text, re.I)
    ]
