"""``keys``: API keys. Always on the database itself: whoever may reach it may hand out keys to the API before it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.cli.ending import say
from orchestrator.cli.printing import Json, put, table
from orchestrator.domain.errors import NotFound, UsageError

keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")

SECRET_PREFIX = "ork_"  # noqa: S105  how a leaked key is recognised, not one
_LIST = ["id", "name", "tenant", "role", "created_at", "revoked_at"]


class Role(StrEnum):
    """What a key may do; each includes the one before."""

    SUBMIT = "submit"
    OPERATE = "operate"
    ADMIN = "admin"


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.SUBMIT,
    tenant: Annotated[str, typer.Option(help="Whose jobs it sees.")] = "default",
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once: only its hash is stored."""
    from orchestrator.cli.direct import engine_for_shell
    from orchestrator.store.desk import Caller, add_key

    if not tenant.isprintable() or not 0 < len(tenant) <= 63:
        raise UsageError("--tenant has 1 to 63 printable characters.")
    with engine_for_shell() as engine:
        secret = SECRET_PREFIX + engine.clock.new_secret()
        caller = Caller(engine.clock.new_id(), name or role.value, tenant, role.value)
        engine.db.run(lambda session: add_key(session, caller, secret))
    say("Keep it: it cannot be shown again.")
    made = {"id": caller.key_id, "name": caller.name, "tenant": tenant, "role": role.value, "key": secret}
    put(made, as_json, lambda row: str(row["key"]))


@keys.command("list")
def list_(as_json: Json = False) -> None:
    """List keys, without their secrets."""
    from orchestrator.cli.direct import engine_for_shell
    from orchestrator.store import desk

    with engine_for_shell() as engine:
        put(engine.db.run(desk.keys, readonly=True), as_json, lambda rows: table(rows, _LIST))


@keys.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")]) -> None:
    """Revoke a key; the API refuses it within 5 s."""
    from orchestrator.cli.direct import engine_for_shell
    from orchestrator.store.desk import revoke_key

    with engine_for_shell() as engine:
        if not engine.db.run(lambda session: revoke_key(session, key_id)):
            raise NotFound(f"no key {key_id} is in use.", mend="List them: orchestrator keys list.")
    say(f"revoked {key_id}")
