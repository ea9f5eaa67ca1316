"""Workflow versions: immutable, named by the hash of their content with the agents they use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.domain.breaker import provider_of
from orchestrator.domain.workflow import Agent
from orchestrator.store.session import Session, Statement

#: Characters of a version.
HASH_LENGTH = 32


def putting(name: str, version: str, definition: str) -> Statement:
    """Writes a version; writing it again changes nothing."""
    sql = (
        "INSERT INTO workflows (version, name, definition, listed_at, created_at) VALUES (:version, :name, :definition,"
        " NULL, {now}) ON CONFLICT (version) DO NOTHING"
    )
    return sql, {"version": version, "name": name, "definition": definition}


def put_listed(session: Session, name: str, version: str, definition: str) -> None:
    """Writes a version, and lists it as the name's newest."""
    listing = "UPDATE workflows SET listed_at = {now} WHERE version = :version", {"version": version}
    session.together(putting(name, version, definition), listing)


def definition(session: Session, version: str) -> str | None:
    found = session.value("SELECT definition FROM workflows WHERE version = :version", {"version": version})
    return None if found is None else str(found)


def newest(session: Session, name: str, version: str | None = None) -> str | None:
    """A version of ``name``: the newest listed, or the listed one whose hash starts with ``version``.

    What came inline with a job is found by its whole hash alone: it is nobody's but its submitter's.
    """
    [rows] = session.together(finding(name, version))
    return found(rows)


#: The newest listed version of the workflow ``{name}``: a scalar query.
NEWEST = "SELECT version FROM workflows WHERE name = {name} AND listed_at IS NOT NULL ORDER BY listed_at DESC LIMIT 1"


def finding(name: str, version: str | None) -> Statement:
    """What ``newest`` asks; ``found`` reads the answer."""
    if not version:
        return NEWEST.format(name=":name"), {"name": name}
    listed = "AND listed_at IS NOT NULL" if len(version) < HASH_LENGTH else ""
    sql = (
        "SELECT version FROM workflows WHERE name = :name AND substr(version, 1, :length) = :version"
        f" {listed} ORDER BY listed_at DESC LIMIT 1"
    )
    return sql, {"name": name, "version": version, "length": len(version)}


def found(rows: Sequence[Mapping[str, Any]]) -> str | None:
    return str(rows[0]["version"]) if rows else None


def names(session: Session) -> list[dict[str, object]]:
    return session.rows(
        "SELECT name, version, listed_at, created_at FROM workflows WHERE listed_at IS NOT NULL"
        " ORDER BY name, listed_at DESC"
    )


def put_limits(session: Session, tenant: str, agents: Mapping[str, Agent], *, replace: bool = True) -> None:
    """The tenant's newest definition of an agent's limits holds, for every workflow of its that names the agent.

    ``replace=False``: only where the tenant has none yet. Only metered agents belong here.
    """
    conflict = "DO NOTHING"
    if replace:
        conflict = (
            "DO UPDATE SET concurrency = excluded.concurrency, rate = excluded.rate, breaker = excluded.breaker,"
            " provider = excluded.provider"
            " WHERE coalesce(agent_limits.concurrency, -1) <> coalesce(excluded.concurrency, -1)"
            " OR coalesce(agent_limits.rate, -1) <> coalesce(excluded.rate, -1)"
            " OR agent_limits.breaker <> excluded.breaker"
            " OR coalesce(agent_limits.provider, '') <> coalesce(excluded.provider, '')"
        )
    session.many(
        "INSERT INTO agent_limits (tenant, agent, concurrency, rate, tokens, refilled_at, breaker, provider)"
        " VALUES (:tenant, :agent, :concurrency, :rate, 1, {now}, :breaker, :provider)"
        f" ON CONFLICT (tenant, agent) {conflict}",
        [{"tenant": tenant, "agent": name, **_metered(agent)} for name, agent in sorted(agents.items())],
    )


def _metered(agent: Agent) -> dict[str, Any]:
    limits, breaker = agent.limits, agent.breaker
    return {
        "concurrency": limits.concurrency if limits is not None else None,
        "rate": limits.rate_per_second() if limits is not None else None,
        "breaker": breaker is not None,
        "provider": provider_of(agent) if breaker is not None and breaker.provider else None,
    }


def limited_agents(session: Session, tenant: str) -> set[str]:
    """The tenant's agents whose limits are known."""
    return {row["agent"] for row in session.rows("SELECT agent FROM agent_limits WHERE tenant = :t", {"t": tenant})}
