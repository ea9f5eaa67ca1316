"""The parts of the contract review: splitting, quoting, duties, facts. Properties over messy text, cases by name."""

from __future__ import annotations

import asyncio
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.ports import CallContext
from workers.context import Context

# A workflow's own directory is where its targets are looked up, by `run` and `dev` and so here.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "contract_review"))

from contract_review import agents
from contract_review.duties import find_duties
from contract_review.facts import find_amounts, find_dates, find_parties, role_words
from contract_review.markdown import empty_sections, markdown_to_plain, plain_to_markdown, quotation
from contract_review.measures import measures
from contract_review.sections import split_sections
from contract_review.sentences import sentences
from contract_review.spans import QUOTE, Evened, even, quote

#: Text as contracts have it, and as they should not: headings, lists, quotes, odd line ends, other scripts.
PIECES = st.sampled_from(
    [
        *(
            "1. Term. ",
            "\n2. Fees\n",
            "\r\n\r\n",
            "ARTICLE IV\n",
            "(a) ",
            "You shall not ",
            "pay ",
            "the ",
            "indemnify ",
        ),
        *(
            'the "Work" means ',
            "in no event liable. ",
            "Inc. ",
            "…",
            "漢字 ",
            "\t",
            " \n\n",
            "# Heading\n\n",
            "APPENDIX A\n",
        ),
        *("; and ", "“X” ", "\x0b"),
    ]
)
MESSY = st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=60).map("".join)


def context(**config: Any) -> Context:
    call = CallContext(JobId("job"), StepPath("step"), attempt=1, idempotency_key="key", timeout=60.0)
    return Context(call, config)


def spans(value: Any) -> list[dict[str, Any]]:
    """Every quotation anywhere in ``value``."""
    if isinstance(value, dict):
        own = [value] if set(value) == {"start", "end", "quote"} else []
        return own + [span for inner in value.values() for span in spans(inner)]
    return [span for inner in value for span in spans(inner)] if isinstance(value, list) else []


@given(MESSY)
def test_sections_cover_the_text_from_end_to_end(text: str) -> None:
    sections = split_sections(text)
    if not text.strip():
        assert sections == []
        return
    assert (sections[0].start, sections[-1].end) == (0, len(text))
    assert all(a.end == b.start for a, b in pairwise(sections))
    assert all(section.start < section.end for section in sections)


@given(st.integers(1, 5), MESSY)
def test_sections_are_never_more_than_asked_for(limit: int, text: str) -> None:
    assert len(split_sections(text, limit)) <= limit


@given(MESSY)
def test_sentences_lie_in_order_and_lose_no_word(text: str) -> None:
    found = list(sentences(text))
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    kept = "".join(text[start:end] for start, end in found)
    assert re.sub(r"\W|and|or", "", kept) == re.sub(r"\W|and|or", "", text)


@given(MESSY)
def test_quotations_are_exact_whatever_the_text(text: str) -> None:
    facts = agents.find_facts(context(), {"text": text})
    extract = agents.extract_clauses(context(), {"text": text, "facts": facts})
    for clause in extract["clauses"]:
        assert text[clause["start"] : clause["end"]] == clause["text"]
        assessment = agents.classify_risk(context(), {"clause": clause, "language": "en"})
        for span in spans([facts, clause["duties"], assessment["findings"]]):
            assert text[span["start"] : span["end"]] == span["quote"]
            assert len(span["quote"]) <= QUOTE


@given(st.text(), st.integers(0, 50), st.integers(0, 200))
def test_a_quote_lies_within_what_was_asked(text: str, start: int, width: int) -> None:
    start, end = min(start, len(text)), min(start + width, len(text))
    span = quote(text, start, end, base=7)
    assert text[span["start"] - 7 : span["end"] - 7] == span["quote"]
    assert span["quote"] == span["quote"].strip()


@given(st.text())
def test_evened_text_knows_its_way_back(text: str) -> None:
    evened = Evened(text)
    assert evened.text == even(text)
    for position, character in enumerate(evened.text):
        if character != " ":
            assert text[evened.origin(position)] == character


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_contract_text_cannot_become_markup(text: str) -> None:
    shown = plain_to_markdown(text, 10_000)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*[<>\[\]|*_`#]", shown)
    assert markdown_to_plain(shown) == even(text)
    assert quotation(text).count("\n") == 0


def test_an_inner_list_and_a_table_of_contents_are_no_headings() -> None:
    contents = "1. Scope\n2. Price\n\n"
    body = "1. Scope\nThe Seller shall deliver these things in good order and in time:\n"
    body += "   1. Apples\n   2. Pears\n   3. Plums\n"
    body += "2. Price\nThe Buyer shall pay one thousand euros for all of it, and not a cent more than that.\n"
    sections = split_sections(contents + body)
    assert [(s.number, s.title) for s in sections] == [("", ""), ("1", "Scope"), ("2", "Price")]


def test_abbreviations_do_not_end_a_sentence() -> None:
    text = "Foo Inc. Shall pay. See No. 5 of the list, e.g. Apples. (a) You must go; and (b) You must stay."
    assert [text[a:b] for a, b in sentences(text)] == [
        "Foo Inc. Shall pay.", "See No. 5 of the list, e.g. Apples.", "(a) You must go;", "(b) You must stay."
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Supplier shall deliver and must not delay.", [("must", "The Supplier"), ("must_not", "The Supplier")]),
        ("Neither party may assign this agreement.", [("must_not", "Neither party")]),
        ('"Work" shall mean the thing. The Work shall include its parts.', []),
        ("In no event shall the Supplier be liable.", []),
        ("The weather will change. The Customer will pay.", [("must", "The Customer")]),
        ("On the first day the Customer may leave.", [("may", "the Customer")]),
        ("Goods that shall arrive late.", []),
    ],
)
def test_who_is_bound_to_what(text: str, expected: list[tuple[str, str]]) -> None:
    roles = role_words(["Supplier", "Customer"])
    assert [(duty["kind"], duty["who"]) for duty in find_duties("1", text, 0, roles)] == expected


def test_dates_amounts_and_parties_are_read_in_several_spellings() -> None:
    text = "On 2024-02-03, 4 March 2024, May 5, 2023 and June 2022: $1,200.50, EUR 3 million, 75 dollars."
    assert [v["value"] for v in find_dates(text)] == ["2024-02-03", "2024-03-04", "2023-05-05", "2022-06"]
    assert [v["value"] for v in find_amounts(text)] == ["USD 1200.50", "EUR 3000000", "USD 75"]
    parties = find_parties('made between Tide, Inc., a firm ("Provider"), and Vale Limited ("Customer").')
    assert [(p["name"], p["role"]) for p in parties] == [("Tide, Inc.", "Provider"), ("Vale Limited", "Customer")]


@pytest.mark.parametrize(
    ("text", "measure", "expected"),
    [
        ("within thirty (30) days or 2 weeks", "days", [30.0, 14.0]),
        ("a twelve-month term, then Five years", "days", [360.0, 1825.0]),
        ("eight (8) years", "years", [8.0]),
        ("1.5% or 2 percent", "percent", [1.5, 2.0]),
        ("s\u0131x days, \u017feven days, \u0663 days", "days", []),
    ],
)
def test_periods_and_percentages(text: str, measure: str, expected: list[float]) -> None:
    assert [value for value, _ in measures(measure, text)] == expected


def test_letters_that_only_look_like_ours_make_no_date() -> None:
    assert find_dates("1 Apr\u0131l 2024, 2 Augu\u017ft 2024, \u0661\u0661 2024") == []


def test_a_reference_to_a_section_that_is_not_there_is_reported() -> None:
    text = "3. Liability. In no event shall the Seller be liable, except under Section 12 and Section 1."
    clause = {"id": "3", "number": "3", "title": "Liability", "start": 0, "end": len(text), "text": text, "duties": []}
    assessment = agents.classify_risk(context(), {"clause": clause, "language": "en"})  # type: ignore[typeddict-item]
    verdict = asyncio.run(agents.check_policy(context(policy="policy.json"), {"assessment": assessment}))
    reading = agents.read_closely(context(), {"verdict": verdict, "terms": [], "numbers": ["1", "2", "3"]})
    assert (reading["references"], reading["dangling"]) == (["12", "1"], ["12"])
    assert reading["score"] < assessment["score"], "an exception in the sentence softens it"


def test_empty_sections_are_seen() -> None:
    assert empty_sections("# A\n\n## B\n\ntext\n\n## C\n\n## D\n\n### E\n\ntext\n") == ["C"]
