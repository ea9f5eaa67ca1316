"""What the agents hand to each other, as JSON shapes. ``start`` and ``end`` are character offsets into the contract."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypedDict

Level = Literal["unread", "none", "low", "medium", "high"]


class Log(Protocol):
    """The logger an agent is given; lines carry the job and the step."""

    def info(self, event: str, **fields: Any) -> Any: ...


class Context(Protocol):
    """What an agent is told beside its input. These agents read ``config`` and report ``progress``; see the README."""

    @property
    def idempotency_key(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def log(self) -> Log: ...
    def progress(self) -> None: ...


class Span(TypedDict):
    """A quotation: ``contract[start:end] == quote``, always. At most 800 characters."""

    start: int
    end: int
    quote: str


class Duty(TypedDict):
    """One thing somebody must, must not or may do. ``act`` is its wording from the verb on, white space evened out."""

    id: str
    kind: Literal["must", "must_not", "may"]
    who: str
    act: str
    evidence: Span


class Clause(TypedDict):
    id: str
    number: str
    title: str
    start: int
    end: int
    text: str
    duties: list[Duty]


class Term(TypedDict):
    term: str
    evidence: Span


class Party(TypedDict):
    name: str
    role: str
    evidence: Span


class Value(TypedDict):
    """A date or an amount as written in ``evidence``; ``value`` is its plain form (``2024-03-01``, ``USD 50000``)."""

    value: str
    evidence: Span


class SetAside(TypedDict):
    """A part of the text that is not reviewed, and why."""

    title: str
    start: int
    end: int
    why: str


class Facts(TypedDict):
    """``numbers`` are those of the numbered sections, in order."""

    title: str
    language: Literal["en", "unrecognised"]
    words: int
    parties: list[Party]
    roles: list[str]
    dates: list[Value]
    amounts: list[Value]
    terms: list[Term]
    numbers: list[str]


class Extract(TypedDict):
    clauses: list[Clause]
    set_aside: list[SetAside]


class Finding(TypedDict):
    """One risk seen in a clause. ``weight`` in (0, 1]: how much it alone would make the clause's score."""

    rule: str
    topic: str
    weight: float
    why: str
    evidence: Span


class Assessment(TypedDict):
    """``score`` in [0, 1]; ``topics`` is empty where nothing was recognised."""

    clause: Clause
    topics: list[str]
    findings: list[Finding]
    score: float
    level: Level


class Breach(TypedDict):
    """A clause against a rule of the policy; ``position`` is what the policy asks for instead."""

    rule: str
    title: str
    severity: Literal["note", "negotiate", "refuse"]
    position: str
    evidence: Span


class Verdict(TypedDict):
    assessment: Assessment
    breaches: list[Breach]
    flagged: bool


class Missing(TypedDict):
    """A subject the policy requires that no clause speaks of."""

    topic: str
    position: str


class Coverage(TypedDict):
    """Which required subjects the contract has. ``checked`` is False where the text could not be read."""

    checked: bool
    present: list[str]
    missing: list[Missing]


class Reading(TypedDict):
    """A second, closer reading of one flagged clause; ``score`` replaces the first one."""

    clause_id: str
    binds: list[str]
    mutual: bool
    conditions: list[Span]
    exceptions: list[Span]
    terms: list[str]
    references: list[str]
    dangling: list[str]
    score: float
    level: Level
    advice: list[str]


class Entry(TypedDict):
    """All that is known of one clause, without its full text."""

    id: str
    number: str
    title: str
    start: int
    end: int
    topics: list[str]
    score: float
    level: Level
    flagged: bool
    findings: list[Finding]
    breaches: list[Breach]
    reading: Reading | None
    duties: list[Duty]


class Dossier(TypedDict):
    """The report as data."""

    facts: Facts
    set_aside: list[SetAside]
    verdict: str
    entries: list[Entry]
    coverage: Coverage


class Brief(TypedDict):
    """What the supervisor asks of the writer: a length in characters, and what must be in whatever it costs."""

    length: int
    clauses: list[str]
    duties: list[str]
    feedback: list[str]


class Draft(TypedDict):
    markdown: str


class Result(TypedDict):
    """What one worker of a round answered."""

    agent: str
    output: Draft


class Review(TypedDict):
    """``score`` is the lowest of ``criteria``, each in [0, 1]: a report is as good as its weakest side."""

    score: float
    criteria: dict[str, float]
    feedback: list[str]
    missing_clauses: list[str]
    missing_duties: list[str]
