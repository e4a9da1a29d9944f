"""The privacy policy of one warehouse: the configured one, and the one that its rows were loaded under.

The second is stored next to the warehouse in `privacy.json`, with a copy in the published tables: a changed policy has
to be applied to the stored rows before more are loaded, and erased people must stay erased.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import msgspec

from msgbubbles.errors import ConfigurationError
from msgbubbles.policy import FULL, ORDERS, PSEUDONYM, SECTION, Policy, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import Settings, load_settings
from msgbubbles_sync.sql import store_value
from msgbubbles_sync.tables import PRIVACY, column_definitions
from msgbubbles_sync.workspace import PIPELINE, Workspace

from .vault import Vault

FILE = "privacy.json"


class Record(msgspec.Struct, frozen=True):
    """The policy and key that a warehouse was filled with, and who was erased from it, as hashes with that key.
    `key_check` tells the key from others; null without a key.
    """

    policy: Policy = FULL
    key_check: str | None = None
    erased: frozenset[str] = frozenset()

    @classmethod
    def load(cls, workspace: Workspace) -> Record | None:
        """Load the record of a warehouse; null if none was ever written. Raises `UsageError` for a damaged one."""
        path = _path_of(workspace)
        try:
            text: str | bytes | None = path.read_bytes()
        except FileNotFoundError:
            text = _published(workspace)
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError:
            raise UsageError(
                f"{path} is damaged: it says by what policy the rows were landed and who was erased. Get it from a "
                "backup, or remove it together with the folder it is in: it is then restored from the published file"
            ) from None

    def save(self, workspace: Workspace) -> None:
        path = _path_of(workspace)
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(msgspec.structs.replace(self, erased=sorted(self.erased))))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def with_erased(self, marks: Iterable[str]) -> Record:
        return msgspec.structs.replace(self, erased=self.erased | set(marks))


def _path_of(workspace: Workspace) -> Path:
    return workspace.folder / FILE


def _published(workspace: Workspace) -> str | None:
    """Return the copy in the published tables, if the job's own files are lost."""
    if workspace.destination != "duckdb" or workspace.work.exists() or not workspace.database.exists():
        return None
    with build_destination(workspace).open_reader() as connection:
        try:
            found = connection.execute(f"SELECT record FROM msgbubbles.{PRIVACY.name}").fetchone()  # noqa: S608
        except duckdb.CatalogException:
            return None
    return None if found is None else str(found[0])


def store(connection: duckdb.DuckDBPyConnection, workspace: Workspace, schema: str) -> None:
    """Bring the copy of the record in a schema of the warehouse up to date."""
    path = _path_of(workspace)
    if path.exists():
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        store_value(connection, f"{schema}.{PRIVACY.name}", column_definitions(PRIVACY), path.read_text())


def open_vault(settings: Settings) -> Vault | None:
    """Return the vault of the configuration; null without one."""
    return Vault(settings.vault) if settings.vault else None


def read_policy(settings: Settings) -> tuple[Policy, Pseudonymizer | None]:
    """Return the policy of the configuration, and its key if there is one. Raises `UsageError`."""
    key = settings.privacy_key
    try:
        return settings.policy, Pseudonymizer.from_key(key) if key or settings.policy.redacts else None
    except ConfigurationError as error:
        raise UsageError(str(error)) from None


def look_up(names: Iterable[str], settings: Settings) -> dict[str, str | None]:
    """Return the handle of each pseudonym, and the pseudonym of each number or address. Null for unknown pseudonyms.

    Raises `UsageError` without a key, and for a pseudonym without a vault.
    """
    vault, (_, pseudonyms) = open_vault(settings), read_policy(settings)
    if pseudonyms is None:
        raise UsageError(f"[{SECTION}] has no key, so nobody has a pseudonym here")
    found: dict[str, str | None] = {}
    for name in names:
        if not PSEUDONYM.fullmatch(name):
            found[name] = pseudonyms.handle(name)
        elif vault is None:
            raise UsageError(
                f"who is behind a pseudonym is kept in a vault only, and there is none: [{SECTION}] vault is its path"
            )
        else:
            found[name] = vault.find_handle(name)
    if not found:
        raise UsageError("privacy lookup takes pseudonyms, or numbers and addresses; - reads them from standard input")
    return found


def build_redactor(workspace: Workspace) -> Redactor:
    """Build what applies the configured policy, and record the policy next to an empty warehouse.

    Raises `UsageError` if the stored rows were loaded under another policy, or with another key.
    """
    settings = load_settings(workspace.account)
    policy, pseudonyms = read_policy(settings)
    record = Record.load(workspace)
    if record is None:
        if not policy.redacts:
            return Redactor(policy)
        if has_rows(workspace):
            raise UsageError(_not_applied(policy, FULL))
        record = Record(policy, pseudonyms.check if pseudonyms else None)
        record.save(workspace)
    if _redaction(record.policy) != _redaction(policy):
        raise UsageError(_not_applied(policy, record.policy))
    check_key(record, pseudonyms)
    return Redactor(policy, pseudonyms, record.erased, vault=open_vault(settings) if policy.redacts else None)


def check_key(record: Record, pseudonyms: Pseudonymizer | None) -> None:
    """Check that the key is the one that the warehouse was filled with. Raises `UsageError`."""
    if record.key_check is None or (pseudonyms is not None and pseudonyms.check == record.key_check):
        return
    raise UsageError(
        f"[{SECTION}] key is not the one that this warehouse was filled with"
        f"{'' if pseudonyms else ' (there is none)'}: with another, everybody would get a second pseudonym, and erased "
        "people would come back. Put that key back, or begin a new warehouse with another --database"
    )


def save_found_chats(workspace: Workspace, redactor: Redactor) -> None:
    """Record the chats that turned out to be an erased person's, so that they are not asked for again."""
    record = Record.load(workspace)
    if redactor.found_chats and record is not None:
        record.with_erased(redactor.found_chats).save(workspace)


def _redaction(policy: Policy) -> list[str]:
    """Return the settings that stored rows have to be changed for. Days hold from the next run on."""
    return [getattr(policy, name) for name in ORDERS]


def check_stricter(policy: Policy, before: Policy) -> None:
    """Check that a policy keeps nothing that an earlier one has left out. Raises `UsageError`."""
    loosened = policy.loosened(before)
    if loosened:
        raise UsageError(
            f"[{SECTION}] keeps more than this warehouse was filled with ({', '.join(loosened)}), and what was left "
            "out is not there: begin a new warehouse with another --database, which reads everything again, or set "
            f"{'it' if len(loosened) == 1 else 'them'} back"
        )


def _not_applied(policy: Policy, before: Policy) -> str:
    check_stricter(policy, before)
    return (
        f"[{SECTION}] is stricter than what the rows of this warehouse were landed by: bring them to it with: "
        "python pipelines/chats.py privacy apply"
    )


def has_rows(workspace: Workspace) -> bool:
    """Return whether anything was ever loaded, received or asked for here."""
    folder = workspace.folder
    paths = (workspace.work, workspace.database, folder / "dlt" / PIPELINE, folder / "groups.sqlite")
    return any(path.exists() for path in paths) or any((folder / "webhooks" / "spool").glob("*"))


def describe_error(error: BaseException, workspace: Workspace) -> str:
    """Return the traceback of an error, for a file. Messages may quote rows, so under a policy only the types of the
    errors and the places in the code are left.
    """
    try:
        record = Record.load(workspace)
        is_private = record is not None and (record.policy.redacts or bool(record.erased))
    except (UsageError, OSError, duckdb.Error):
        is_private = True
    if not is_private:
        return "".join(traceback.format_exception(error))
    return "\n".join(_bare(error))


def _bare(error: BaseException | None) -> Iterator[str]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield type(error).__name__
        yield from (line.rstrip("\n") for line in traceback.format_tb(error.__traceback__))
        error = error.__cause__ or error.__context__


def read_own_numbers(workspace: Workspace) -> list[str]:
    """Read the account's own numbers from the tables that the job writes; empty before the first load."""
    with build_destination(workspace).open_writer() as connection:
        try:
            return [row[0] for row in connection.execute("SELECT handle FROM msgbubbles.numbers").fetchall()]
        except duckdb.CatalogException:
            return []
