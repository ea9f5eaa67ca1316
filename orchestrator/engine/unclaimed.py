"""The part of ``explain`` that is about ready steps: why has nobody claimed them?"""

from __future__ import annotations

import json
from typing import Any, Final

from orchestrator.engine.causes import ALIVE, Cause, Scene, cause_of, span, steps_are
from orchestrator.store.explain import Alike

#: Users of a full limit that are named.
NAMED: Final = 5


def why_unclaimed(scene: Scene, alike: Alike) -> Cause:
    serving = scene.serving(alike.queue)
    if not serving:
        return _no_worker(scene, alike)
    if alike.dispatched_at is not None:
        return _published(scene, alike, serving)
    return _at_limit(scene, alike) or _in_line(scene, alike, serving)


def _no_worker(scene: Scene, alike: Alike) -> Cause:
    gone = [row for row in scene.processes if alike.queue in row["queues"] and row["slots"]]
    draining = [row for row in gone if row["draining"] and row["age"] < ALIVE]
    since = max([alike.ready_at or scene.now, *(row["heartbeat_at"] for row in gone if not row["draining"])])
    says = f"No worker takes queue {alike.queue}: {steps_are(alike)} ready for {span(scene.now - since)}."
    if draining:
        says += f" {len(draining)} that did {'is' if len(draining) == 1 else 'are'} draining."
    detail: dict[str, Any] = {"queue": alike.queue, "draining": len(draining)}
    return cause_of(alike, "no_worker", says, f"orchestrator worker -Q {alike.queue}", since=since, **detail)


def _published(scene: Scene, alike: Alike, serving: list[dict[str, Any]]) -> Cause:
    queue = scene.queues.get(alike.queue, {})
    slots, busy = _slots(serving)
    since = alike.dispatched_at or scene.now
    seen, mark = queue.get("seen"), alike.mark or 0
    detail: dict[str, Any] = {"queue": alike.queue, "mark": mark, "seen": seen, "slots": slots, "busy": busy}
    detail["redispatches"] = alike.redispatches
    for_ = span(scene.now - since)
    if seen is not None and seen > mark:
        says = (
            f"{steps_are(alike)} published {for_} ago, and the message is lost: a later one has come out of the queue."
        )
        return cause_of(
            alike, "message_lost", says, "A scheduler publishes it again within seconds.", since=since, **detail
        )
    says = f"{steps_are(alike)} published to queue {alike.queue} {for_} ago and not taken yet:"
    says += f" {busy} of {slots} slots busy."
    moved_by = (
        f"A free slot; more of them: orchestrator worker -Q {alike.queue}"
        if busy >= slots
        else "A worker takes it at once if the broker delivers. Check the broker: orchestrator doctor"
    )
    return cause_of(alike, "published", says, moved_by, since=since, **detail)


def _at_limit(scene: Scene, alike: Alike) -> Cause | None:
    rows = scene.limits.get(alike.agent or "")
    if not rows:
        return None
    limit = rows[0]
    if limit["until"] is not None:
        return _breaker_open(scene, alike, limit)
    paused = limit["paused_until"]
    if paused is not None and paused > scene.now:
        says = f"Agent {alike.agent} said it was asked too much; nobody calls it for {span(paused - scene.now)} more."
        return cause_of(alike, "agent_paused", says, "It moves by itself then.", until=paused, agent=alike.agent)
    if not alike.limited:
        return None
    users = [row for row in rows if row["job_id"] is not None]
    used = sum(row["running"] + row["rung"] for row in users)
    if limit["concurrency"] is not None and used >= limit["concurrency"]:
        return _limit_full(scene, alike, limit["concurrency"], used, users)
    if limit["rate"] is not None:
        tokens = min(max(1.0, limit["rate"]), limit["tokens"] + (scene.now - limit["refilled_at"]) * limit["rate"])
        if tokens < 1:
            wait = (1 - tokens) / limit["rate"]
            says = f"Agent {alike.agent} may be called {limit['rate']:g} times a second; the next in {span(wait)}."
            detail: dict[str, Any] = {"agent": alike.agent, "rate": limit["rate"]}
            return cause_of(alike, "agent_rate", says, "It moves by itself then.", until=scene.now + wait, **detail)
    return None


def _breaker_open(scene: Scene, alike: Alike, row: dict[str, Any]) -> Cause:
    name, until, since = row["name"], row["until"], row["opened_at"]
    signal, kind, why = json.loads(row["trip"])
    whose = f"of agent {alike.agent}" if name == alike.agent else f"of {name}, which agent {alike.agent} calls,"
    says = f"The breaker {whose} has been open for {span(scene.now - since)}: {why}. {steps_are(alike)} waiting"
    if until > scene.now:
        says += f" at least {span(until - scene.now)} more."
        moved_by = f"Then one call is tried. If it is mended: orchestrator breakers reset {name}"
    else:
        says += " while one call is tried."
        moved_by = f"That call's success. Without waiting for it: orchestrator breakers reset {name}"
    tripped = {"signal": signal, "class": kind, "says": why}
    return cause_of(
        alike,
        "breaker_open",
        says,
        moved_by,
        since=since,
        until=until,
        agent=alike.agent,
        breaker=name,
        tripped_by=tripped,
    )


def _limit_full(scene: Scene, alike: Alike, most: int, used: int, users: list[dict[str, Any]]) -> Cause:
    by = [{"job": row["job_id"], "running": row["running"], "published": row["rung"]} for row in users[:NAMED]]
    others = [row for row in by if row["job"] != scene.job.id]
    whose = f"{len(users)} jobs" if len(users) != 1 else ("this job" if not others else f"job {by[0]['job']}")
    says = f"Agent {alike.agent} runs {most} calls at once (limits), and {whose} {'have' if len(users) != 1 else 'has'}"
    says += f" {used} of them: {steps_are(alike)} waiting for one to end."
    moved_by = "The end of a call, or a higher limits.concurrency of the agent."
    return cause_of(alike, "agent_limit", says, moved_by, agent=alike.agent, concurrency=most, used=used, by=by)


def _in_line(scene: Scene, alike: Alike, serving: list[dict[str, Any]]) -> Cause:
    queue = scene.queues.get(alike.queue, {"ready": 0, "rung": 0, "oldest": None})
    others = max(0, queue["ready"] - scene.own[alike.queue])
    slots, busy = _slots(serving)
    detail: dict[str, Any] = {
        "queue": alike.queue,
        "others": others,
        "published": queue["rung"],
        "slots": slots,
        "busy": busy,
    }
    since = alike.ready_at
    for_ = span(scene.now - since) if since is not None else "a moment"
    if others == 0 and busy < slots:
        says = f"{steps_are(alike)} ready for {for_} and about to be published."
        moved_by = "A scheduler publishes it within a second. If none runs: orchestrator scheduler"
        return cause_of(alike, "ready", says, moved_by, since=since, **detail)
    says = f"{steps_are(alike)} ready for {for_}, in line with {others} of other jobs in queue {alike.queue}"
    says += f" ({busy} of {slots} slots busy)."
    return cause_of(
        alike, "backlog", says, f"More workers: orchestrator worker -Q {alike.queue}", since=since, **detail
    )


def _slots(serving: list[dict[str, Any]]) -> tuple[int, int]:
    """Slots of ``serving``, and how many of them are busy."""
    return sum(max(0, row["slots"] - row["lost_slots"]) for row in serving), sum(row["busy"] for row in serving)
