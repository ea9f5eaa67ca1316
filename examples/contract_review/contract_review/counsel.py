"""Agent: the supervisor of the report. It plans a draft from the dossier and from the review of the draft before."""

from __future__ import annotations

from typing import Any, TypedDict

from contract_review.reviewer import Goal
from contract_review.shapes import Brief, Context, Result, Review


class Previous(TypedDict):
    results: list[Result]
    review: Review


class PlanInput(TypedDict):
    goal: Goal
    workers: list[str]
    previous: Previous | None


def plan_report(ctx: Context, input: PlanInput) -> dict[str, Any]:
    """One assignment for the first worker. The first draft is to be short: ``config.length`` characters (5,000).

    After a review, everything the reviewer missed is demanded by name, and the draft may be twice as long as it was.
    """
    length = int(ctx.config.get("length", 5_000))
    brief: Brief = {"length": length, "clauses": [], "duties": [], "feedback": []}
    previous = input["previous"]
    if previous is not None:
        review = previous["review"]
        written = sum(len(result["output"]["markdown"]) for result in previous["results"])
        brief = {
            "length": max(length, written) * 2,
            "clauses": review["missing_clauses"],
            "duties": review["missing_duties"],
            "feedback": review["feedback"],
        }
        ctx.log.info("report_sent_back", score=review["score"], feedback=review["feedback"])
    return {
        "assignments": [{"agent": input["workers"][0], "input": {"dossier": input["goal"]["dossier"], "brief": brief}}]
    }
