"""The facts of a contract: title, language, parties, roles, dates, amounts and defined terms."""

from __future__ import annotations

import re
from collections.abc import Iterable

from contract_review.shapes import Party, Span, Term, Value
from contract_review.spans import even, quote, shorten

_WORD = re.compile(r"[^\W\d_]+")
_FUNCTION_WORDS = frozenset(
    "a all and any are as at be by each for from has if in is it may must no not of on or our shall such that the this "
    "to under we will with you your".split()
)
_QUOTED = r"[\"“](?P<term>[^\"“”\r\n]{2,60})[\"”]"
_MEANS = re.compile(
    rf"{_QUOTED}(?:[^.\"“”]{{0,60}}|\s*\(or [\"“][^\"”]+[\"”]\)\s*)\b(?:shall\s+mean|means?|refers?\s+to)\b"
)
_CALLED = re.compile(rf"\((?:(?:hereinafter|the|each|an?|collectively|together|as|,)\s+)*{_QUOTED}[^()]{{0,60}}\)")
_COMPANY = (
    r"(?P<name>(?:[A-Z][\w&’'.-]*(?:,?[ \t]+|,?\r?\n[ \t]*)){1,6}?"
    r"(?:Inc|LLC|L\.L\.C|Ltd|Limited|Corp|Corporation|GmbH|AG|plc|PLC|LLP|LP|B\.V|S\.A|SARL|Pty|Company|Foundation|University)\b\.?)"
)
_NAMED_PARTY = re.compile(
    rf"{_COMPANY}(?P<between>[^()\"“]{{0,250}})\((?:the |each an? |an? )?[\"“](?P<role>[^\"“”]{{2,40}})[\"”]"
)
_FORM = r"(?:,\s+(?:Inc|LLC|Ltd|L\.L\.C|Corp|Limited|S\.A|B\.V)\b\.?)?"
_BETWEEN = re.compile(
    rf"\bbetween:?\s+(?P<a>[A-Z][^\"“(),]{{1,100}}{_FORM})\s*(?:,[^\"“()]{{0,200}})?"
    r"\((?:the )?[\"“](?P<ra>[^\"”]{2,40})[\"”]\)"
    rf",?\s+and\s+(?P<b>[A-Z][^\"“(),]{{1,100}}{_FORM})\s*(?:,[^\"“()]{{0,200}})?"
    r"\((?:the )?[\"“](?P<rb>[^\"”]{2,40})[\"”]\)"
)
_ROLES = (
    "Licensor|Licensee|You|We|Contributor|Customer|Client|Provider|Supplier|Vendor|Buyer|Seller|Company|Contractor|"
    "Consultant|Employee|Employer|Landlord|Tenant|Lender|Borrower|Recipient|Discloser|Disclosing Party|Receiving Party|"
    "User|Subscriber|Partner|Agent|Distributor"
).split("|")
_GENERAL_ROLES = ("either party", "each party", "neither party", "both parties", "the parties", "party")
_ARTICLES = ("the", "each", "any", "every", "no", "neither", "a", "an", "such")
_MONTHS = "January February March April May June July August September October November December".split()
# In two cases rather than with re.I, which lets other alphabets' letters pass for ours.
_MONTH = "(?:" + "|".join([*_MONTHS, *(month.upper() for month in _MONTHS)]) + ")"
_DATE = re.compile(
    rf"\b(?:(?P<iso>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})|(?P<m1>{_MONTH})\s+(?:(?P<d1>[0-9]{{1,2}})(?:st|nd|rd|th)?,\s+)?(?P<y1>[0-9]{{4}})"
    rf"|(?P<d2>[0-9]{{1,2}})(?:st|nd|rd|th)?\s+(?P<m2>{_MONTH}),?\s+(?P<y2>[0-9]{{4}}))\b",
)
_AMOUNT = r"[0-9][0-9,]*(?:\.[0-9]{1,2})?"
_MONEY = re.compile(
    rf"(?P<mark>US\$|USD|EUR|GBP|CHF|\$|€|£)\s?(?P<number>{_AMOUNT})(?P<scale>\s(?:thousand|million|billion))?\b"
    rf"|\b(?P<number2>{_AMOUNT})(?P<scale2>\s(?:thousand|million|billion))?"
    r"\s(?P<mark2>US dollars|dollars|euros|pounds|USD|EUR|GBP|CHF)\b"
)
_CURRENCY = {
    "$": "USD",
    "US$": "USD",
    "dollars": "USD",
    "US dollars": "USD",
    "€": "EUR",
    "euros": "EUR",
    "£": "GBP",
    "pounds": "GBP",
}
_SCALE = {"thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}


def is_english(text: str) -> bool:
    """Whether at least 15% of the first 5,000 words are English function words; contracts have 30 to 50%."""
    words = [word.lower() for word in _WORD.findall(text[:60_000])][:5_000]
    return bool(words) and sum(word in _FUNCTION_WORDS for word in words) / len(words) >= 0.15


def count_words(text: str) -> int:
    return len(_WORD.findall(text))


def title_of(text: str) -> str:
    """The first line that has words in it."""
    found = re.search(r"[^\W_][^\r\n]*", text)
    return shorten(found[0].strip(" \t#*=-"), 100) if found else "Untitled text"


def find_parties(text: str) -> list[Party]:
    """Named parties with the role they are given, from the first 20,000 characters and in order; none is normal."""
    opening = text[:20_000]
    found: dict[str, Party] = {}
    for match in _BETWEEN.finditer(opening):
        for name, role in (("a", "ra"), ("b", "rb")):
            _add(found, even(match[name]), even(match[role]), quote(opening, match.start(name), match.end(role) + 1))
    for match in _NAMED_PARTY.finditer(opening):
        _add(found, even(match["name"]), even(match["role"]), quote(opening, match.start(), match.end()))
    return list(found.values())


def _add(found: dict[str, Party], name: str, role: str, evidence: Span) -> None:
    if role.lower() not in {party["role"].lower() for party in found.values()}:
        found[role] = {"name": name.rstrip(","), "role": role, "evidence": evidence}


def find_terms(text: str) -> list[Term]:
    """Defined terms, each once, where it is defined first."""
    found: dict[str, Term] = {}
    for match in sorted([*_MEANS.finditer(text), *_CALLED.finditer(text)], key=lambda match: match.start()):
        term = even(match["term"]).strip(".,")
        if term not in found and len(term.split(" ")) <= 6 and term[:1].isupper():
            found[term] = {"term": term, "evidence": quote(text, match.start(), _definition_end(text, match))}
    return list(found.values())


def _definition_end(text: str, match: re.Match[str]) -> int:
    """Where "X means …" ends: at its full stop, or after 300 characters. A term in brackets is its own evidence."""
    if match[0].endswith(")"):
        return match.end()
    stop = re.compile(r"[.;](?:\s|$)").search(text, match.end(), match.end() + 300)
    return stop.start() + 1 if stop else min(len(text), match.end() + 300)


def find_roles(text: str, parties: Iterable[Party]) -> list[str]:
    """The names under which somebody is bound: the parties' roles and the usual ones that the text uses."""
    roles = [party["role"] for party in parties]
    usual = [role for role in _ROLES if re.search(rf"\b{role}\b", text)]
    return list(dict.fromkeys([*roles, *usual]))


def role_words(roles: Iterable[str]) -> frozenset[str]:
    """``roles`` in lower case, with the general ones ("either party") and with their articles."""
    words = [role.lower() for role in roles] + list(_GENERAL_ROLES)
    return frozenset([*words, *(f"{article} {word}" for article in _ARTICLES for word in words)])


def find_dates(text: str) -> list[Value]:
    """Dates, each value once, as ``2024-03-01`` or ``2024-03`` where no day is named."""
    found: dict[str, Value] = {}
    for match in _DATE.finditer(text):
        value = match["iso"] or _plain_date(
            match["y1"] or match["y2"], match["m1"] or match["m2"], match["d1"] or match["d2"]
        )
        found.setdefault(value, {"value": value, "evidence": quote(text, match.start(), match.end())})
    return list(found.values())


def _plain_date(year: str, month: str, day: str | None) -> str:
    plain = f"{year}-{_MONTHS.index(month.capitalize()) + 1:02}"
    return f"{plain}-{int(day):02}" if day else plain


def find_amounts(text: str) -> list[Value]:
    """Amounts of money, each value once, as ``USD 1500000``."""
    found: dict[str, Value] = {}
    for match in _MONEY.finditer(text):
        number = float((match["number"] or match["number2"]).replace(",", ""))
        number *= _SCALE.get((match["scale"] or match["scale2"] or "").strip(), 1)
        mark = match["mark"] or match["mark2"]
        value = f"{_CURRENCY.get(mark, mark)} {number:.2f}".removesuffix(".00")
        found.setdefault(value, {"value": value, "evidence": quote(text, match.start(), match.end())})
    return list(found.values())
