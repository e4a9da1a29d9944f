"""Whose rows a warehouse holds: of a made-up account or of a real one, and of which of several.

The claim is in a file of the job, with a copy in the tables: a file that is lost or damaged is restored from what the
tables know, and never to what they contradict.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import move_damaged, write_privately
from msgbubbles_sync.workspace import CLAIM, CLAIM_TABLE, Workspace

if TYPE_CHECKING:
    from msgbubbles_sync.destinations import Destination

REAL, SANDBOX = "a MsgBubbles account", "the sandbox"

Claim = dict[str, str]


def claim(workspace: Workspace, destination: Destination, *, sandbox: bool, say: Callable[[str], None]) -> None:
    """Refuse to mix a made-up account with a real one, or one of several with another.

    A damaged claim is moved aside and written anew, if nothing contradicts it. Raises `UsageError`.
    """
    path = workspace.folder / CLAIM
    ours = {"account": SANDBOX if sandbox else REAL}
    if workspace.account is not None:
        ours |= {"name": workspace.account, "of": workspace.combined.name}
    is_damaged = path.exists() and read_claim(path) is None
    known = read_claim(path) or _evidence(workspace, destination, is_damaged=is_damaged) or ours
    if not path.exists() and "name" not in known:
        known = ours | known  # a warehouse of one account, which is given a name
    if known != ours:
        raise UsageError(
            f"{workspace.database.name} holds the rows of {_described(known)}; choose another --database for "
            f"{_described(ours)}"
        )
    if is_damaged:
        say(f"{path} was damaged: restored; the damaged one is now {move_damaged(path).name}")
    if not path.exists():
        write_privately(path, json.dumps(ours))


def read_claim(path: Path) -> Claim | None:
    """Return the claim of a file; null where it is missing or damaged."""
    with suppress(OSError, ValueError):
        return _checked(json.loads(path.read_text()))
    return None


def store(connection: duckdb.DuckDBPyConnection, workspace: Workspace, schema: str) -> None:
    """Bring the copy of the claim in a schema of the warehouse up to date."""
    known = read_claim(workspace.folder / CLAIM)
    if known is not None:
        table, text = f"{schema}.{CLAIM_TABLE}", json.dumps(known)
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (claim VARCHAR)")
        if connection.execute(f"SELECT claim FROM {table}").fetchall() != [(text,)]:  # noqa: S608
            connection.execute(f"DELETE FROM {table}")  # noqa: S608
            connection.execute(f"INSERT INTO {table} VALUES (?)", [text])  # noqa: S608


def published_claim(database: Path) -> Claim | None:
    """Return the claim that is in a DuckDB file; null where there is no such file, or it has no claim."""
    # DuckDB would make a file that does not exist, but not to read it.
    with suppress(duckdb.Error), duckdb.connect(str(database), read_only=True) as connection:
        return _stored(connection)
    return None


def files_of_accounts(workspace: Workspace) -> dict[str, Path]:
    """Return the published files of the accounts that share a warehouse, `workspace` among them, by name. They go by
    which files exist: a job may be configured for one account only."""
    found = {} if workspace.account is None else {workspace.account: workspace.database}
    for folder in (workspace.database.parent / ".msgbubbles").iterdir():
        known = read_claim(folder / CLAIM)
        if known is None and (folder / CLAIM).exists():  # damaged, until its own job runs
            known = published_claim(workspace.database.with_name(f"{folder.name}{workspace.database.suffix}"))
        if known is not None and known.get("of") == workspace.combined.name:
            found[known["name"]] = Workspace.from_path(
                workspace.combined, workspace.destination, known["name"]
            ).database
    return {account: file for account, file in sorted(found.items()) if file.exists()}


def _evidence(workspace: Workspace, destination: Destination, *, is_damaged: bool) -> Claim | None:
    """Return what the tables and the job's other files say whose rows these are; null where they say nothing.

    Raises `UsageError` where the tables cannot be reached."""
    known = None
    if workspace.destination == "duckdb":
        known = published_claim(workspace.database) or published_claim(workspace.work)
    elif destination.exists():
        with destination.reading() as connection:
            known = _stored(connection)
    if known is not None:
        return known
    account = None
    if (workspace.folder / "sandbox.sqlite").exists():
        account = SANDBOX
    elif is_damaged and (workspace.database.exists() or workspace.work.exists()):
        account = REAL  # rows without the state of a made-up account
    named = {} if workspace.account is None else {"name": workspace.account, "of": workspace.combined.name}
    return None if account is None else {"account": account} | named


def _stored(connection: duckdb.DuckDBPyConnection) -> Claim | None:
    with suppress(duckdb.CatalogException, ValueError):
        row = connection.execute(f"SELECT claim FROM msgbubbles.{CLAIM_TABLE}").fetchone()  # noqa: S608
        return None if row is None else _checked(json.loads(row[0]))
    return None


def _checked(found: Any) -> Claim | None:
    is_claim = isinstance(found, dict) and "account" in found and (("name" in found) == ("of" in found))
    return found if is_claim and all(isinstance(value, str) for value in found.values()) else None


def _described(known: Claim) -> str:
    return f"account {known['name']} of {known['of']}" if "name" in known else known["account"]
