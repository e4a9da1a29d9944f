"""Record whose rows a warehouse holds: the sandbox's or a real account's, and which of several accounts.

The claim is in a file of the workspace, with a copy in the tables. A lost or damaged file is restored from that copy.
Which warehouses of this machine are filled with one API key is noted next to the requests of the key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from msgbubbles.rate_limit import find_record
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import move_damaged, read_json, write_privately
from msgbubbles_sync.run_log import RunLog
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.sql import read_value, store_value
from msgbubbles_sync.tables import CLAIM_TABLE
from msgbubbles_sync.workspace import CLAIM_FILE, DATASET, Workspace

from .base import Destination

REAL, SANDBOX = "a MsgBubbles account", "the sandbox"
# The file of the simulated account.
SANDBOX_FILE = "sandbox.sqlite"

Claim = dict[str, str]
SAME_NUMBERS = """SELECT DISTINCT other.account FROM msgbubbles.numbers AS own
JOIN msgbubbles.numbers AS other USING (handle) WHERE own.account = $1 AND other.account <> $1 ORDER BY 1"""

OTHER_RUNS = """SELECT count(*), max(started_at) FROM msgbubbles.sync_runs
WHERE started_at > $1 AND NOT list_contains($2, run_id)"""
MIN_OTHER_RUNS = 3


def claim(destination: Destination, *, sandbox: bool, say: Callable[[str], None]) -> None:
    """Claim a warehouse for an account. Raises `UsageError` if it holds the rows of another one.

    Renames a damaged claim, and writes it again if the tables do not contradict it.
    """
    workspace = destination.workspace
    path = workspace.folder / CLAIM_FILE
    ours = {"account": SANDBOX if sandbox else REAL}
    if workspace.account is not None:
        ours |= {"name": workspace.account, "of": workspace.combined.name}
    is_damaged = path.exists() and read_claim(path) is None
    stored = read_claim(path) or _infer_claim(destination, is_damaged=is_damaged) or ours
    if not path.exists() and "name" not in stored:
        stored = ours | stored  # a warehouse of one account that now gets a name
    if stored != ours:
        raise UsageError(
            f"{workspace.database.name} holds the rows of {_describe(stored)}; choose another --database for "
            f"{_describe(ours)}"
        )
    if is_damaged:
        say(f"{path} was damaged: restored; the damaged one is now {move_damaged(path).name}")
    if not path.exists():
        write_privately(path, json.dumps(ours))


def read_claim(path: Path) -> Claim | None:
    """Return the claim in a file; null if it is missing or damaged."""
    return _check(read_json(path))


def store(connection: duckdb.DuckDBPyConnection, workspace: Workspace, schema: str) -> None:
    """Update the copy of the claim in a schema of the warehouse."""
    own = read_claim(workspace.folder / CLAIM_FILE)
    if own is not None:
        store_value(connection, schema, CLAIM_TABLE, json.dumps(own))


def read_published_claim(database: Path) -> Claim | None:
    """Return the claim in a DuckDB file; null if the file or the claim is missing."""
    with suppress(duckdb.Error), duckdb.connect(str(database), read_only=True) as connection:
        return _read_copy(connection)
    return None


def explain_same_numbers(destination: Destination) -> str | None:
    """Return a message if another account in the warehouse has the numbers of this one; null otherwise."""
    account = destination.workspace.account
    if account is None:
        return None
    others: list[tuple[str]] = []
    nothing_yet = suppress(UsageError, duckdb.CatalogException, duckdb.IOException)
    with nothing_yet, destination.open_all_accounts() as connection:
        others = connection.execute(SAME_NUMBERS, [account]).fetchall()
    if not others:
        return None
    names = ", ".join(name for (name,) in others)
    return (
        f"the accounts {account} and {names} have the same numbers, so they were loaded with keys of one "
        "account; compare api_key in their sections [accounts.NAME], here and where else they run"
    )


def explain_other_job(destination: Destination) -> str | None:
    """Return a message if jobs with files of their own, as on another machine, load this warehouse; null otherwise.

    A run that was killed while it published is in the warehouse and not in the files, so a few runs are no sign.
    """
    workspace = destination.workspace
    records = RunLog(workspace.folder).records()
    if workspace.destination == "duckdb" or not records:
        return None
    own = [record["run_id"] for record in records]
    since = max(datetime.fromisoformat(records[0]["started_at"]), datetime.now(UTC) - timedelta(days=1))
    with destination.open_query() as query:
        runs: list[tuple[int, datetime]] = query(OTHER_RUNS, since, own)
    if not runs or runs[0][0] < MIN_OTHER_RUNS:
        return None
    count, last = runs[0]
    return (
        f"{count} runs since {since:%Y-%m-%d %H:%M} UTC, the last at {last:%H:%M}, are not of the job with its files "
        f"in {workspace.folder}: another one loads the same tables. Stop one of them, or give it schemas "
        "or a folder of its own"
    )


def note_key(workspace: Workspace, settings: Settings) -> None:
    """Note that a warehouse is filled with an API key, as far as the folder for that can be written."""
    path = _find_notes(settings) / hashlib.sha256(str(workspace.folder).encode()).hexdigest()[:16]
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_privately(path, str(workspace.folder))


def explain_shared_key(workspace: Workspace, settings: Settings) -> str | None:
    """Return a message if other warehouses of this user are filled with the same API key; null otherwise."""
    others = []
    with suppress(OSError, UnicodeDecodeError):
        notes = {Path(path.read_text()) for path in _find_notes(settings).glob("*")}
        others = sorted(str(folder) for folder in notes - {workspace.folder} if folder.is_dir())
    if not settings.api_key or not others:
        return None
    return (
        f"the same API key fills the warehouses with their files in {', '.join(others)}: they hold the same rows, and "
        "all share its requests per minute"
    )


def _find_notes(settings: Settings) -> Path:
    """Return the folder with a file for each warehouse that is filled with the API key."""
    return find_record(settings.api_key, "warehouses", settings.source.budget_dir)


def find_account_files(workspace: Workspace) -> dict[str, Path]:
    """Return the published files of the accounts that share a warehouse, by name.

    Looks for files, because the configuration of this job may lack the other accounts.
    """
    files = {} if workspace.account is None else {workspace.account: workspace.database}
    for folder in (workspace.database.parent / ".msgbubbles").iterdir():
        other = read_claim(folder / CLAIM_FILE)
        is_unreadable = not os.access(folder, os.X_OK) or (folder / CLAIM_FILE).exists()
        if other is None and is_unreadable:  # its own job will restore it, or name the folder
            other = read_published_claim(workspace.database.with_name(f"{folder.name}{workspace.database.suffix}"))
        if other is not None and other.get("of") == workspace.combined.name:
            name = other["name"]
            files[name] = Workspace.from_path(workspace.combined, workspace.destination, name).database
    return {account: file for account, file in sorted(files.items()) if file.exists()}


def _infer_claim(destination: Destination, *, is_damaged: bool) -> Claim | None:
    """Return the claim that the tables and the other files of the workspace imply; null if they imply none.

    Raises `UsageError` if the tables cannot be reached.
    """
    stored, workspace = None, destination.workspace
    if workspace.destination == "duckdb":
        stored = read_published_claim(workspace.database) or read_published_claim(workspace.work)
    elif destination.exists():
        with destination.open_reader() as connection:
            stored = _read_copy(connection)
    if stored is not None:
        return stored
    account = None
    if (workspace.folder / SANDBOX_FILE).exists():
        account = SANDBOX
    elif is_damaged and (workspace.database.exists() or workspace.work.exists()):
        account = REAL  # rows without the state of a sandbox
    name = {} if workspace.account is None else {"name": workspace.account, "of": workspace.combined.name}
    return None if account is None else {"account": account} | name


def _read_copy(connection: duckdb.DuckDBPyConnection) -> Claim | None:
    with suppress(ValueError):
        return _check(json.loads(read_value(connection, DATASET, CLAIM_TABLE) or "null"))
    return None


def _check(claim: Any) -> Claim | None:
    is_claim = isinstance(claim, dict) and "account" in claim and (("name" in claim) == ("of" in claim))
    return claim if is_claim and all(isinstance(value, str) for value in claim.values()) else None


def _describe(stored: Claim) -> str:
    return f"account {stored['name']} of {stored['of']}" if "name" in stored else stored["account"]
