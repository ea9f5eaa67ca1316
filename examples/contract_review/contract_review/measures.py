"""Periods and percentages in a sentence, as numbers a policy can compare."""

from __future__ import annotations

import re

_DAYS = {"day": 1.0, "week": 7.0, "month": 30.0, "year": 365.0}
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve".split()
_NUMBERS = {word: float(value) for value, word in enumerate(_SMALL)} | {
    "fifteen": 15.0,
    "thirty": 30.0,
    "sixty": 60.0,
    "ninety": 90.0,
}
# Spelled out in three cases rather than with re.I, which lets other alphabets' letters pass for ours.
_WORDS = "|".join(spelled for word in _NUMBERS for spelled in (word, word.capitalize(), word.upper()))
_UNITS = "|".join(spelled for unit in _DAYS for spelled in (unit, unit.capitalize(), unit.upper()))
_PERIOD = re.compile(
    rf"\b(?P<number>[0-9]{{1,4}}|{_WORDS})\b(?:\s+\([0-9]{{1,4}}\))?[\s-]+"
    rf"(?:calendar\s+|business\s+|working\s+)?(?P<unit>{_UNITS})[sS]?\b"
)
_PERCENT = re.compile(r"\b(?P<number>[0-9]{1,3}(?:\.[0-9]+)?)\s?(?:%|percent|per cent)")


def measures(measure: str, sentence: str) -> list[tuple[float, int]]:
    """Every number of the kind in the sentence, in days, years or percent, with its place."""
    if measure == "percent":
        return [(float(match["number"]), match.start()) for match in _PERCENT.finditer(sentence)]
    per_unit = 365.0 if measure == "years" else 1.0
    return [
        (_number(match["number"]) * _DAYS[match["unit"].lower()] / per_unit, match.start())
        for match in _PERIOD.finditer(sentence)
    ]


def _number(word: str) -> float:
    return float(word) if word.isdigit() else _NUMBERS[word.lower()]
