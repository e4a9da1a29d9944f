"""Compare the configured privacy policy with the one that the rows of a warehouse were loaded under.

The latter is stored next to the warehouse in `privacy.json`, with a copy in the published tables: a changed policy must
be applied to the stored rows before more are loaded, and erased people must stay erased.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import duckdb
import msgspec

from msgbubbles.api_time import Clock, limit_unconfirmed
from msgbubbles.policy import FULL, ORDERS, PSEUDONYM, SECTION, Policy, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.errors import InputFileError, UsageError, list_causes
from msgbubbles_sync.files import move_damaged, read_json, write_privately
from msgbubbles_sync.run_log import FILE as RUN_LOG
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.sql import read_value, store_value
from msgbubbles_sync.tables import PRIVACY
from msgbubbles_sync.workspace import DATASET, PIPELINE, Workspace

from .vault import Vault

FILE = "privacy.json"
# When the API last answered a run: `Clock.confirmed_at`.
CONFIRMED = "ages_from.json"


class Record(msgspec.Struct, frozen=True):
    """The policy of the stored rows, and hashes of erased people.

    `key_check` is a hash that identifies the key of all hashes and pseudonyms; null without a key.
    """

    policy: Policy = FULL
    key_check: str | None = None
    erased: frozenset[str] = frozenset()

    @classmethod
    def load(cls, workspace: Workspace) -> Record | None:
        """Load the record of a warehouse; null if it has none. Raises `UsageError` if it cannot be read.

        `restore_record` restores a lost one.
        """
        path = workspace.folder / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, OSError):
            raise UsageError(
                f"{path} is damaged or cannot be read: it holds the policy of the stored rows, and who was erased. Run "
                "chats.py, which restores it from the tables; during an erasure, restore it from a backup"
            ) from None

    def save(self, workspace: Workspace) -> None:
        record = msgspec.structs.replace(self, erased=sorted(self.erased))
        write_privately(workspace.folder / FILE, msgspec.json.encode(record))

    def with_erased(self, hashes: Iterable[str]) -> Record:
        return msgspec.structs.replace(self, erased=self.erased | set(hashes))


def store(connection: duckdb.DuckDBPyConnection, workspace: Workspace, schema: str) -> None:
    """Update the copy of the record in a schema of the warehouse."""
    path = workspace.folder / FILE
    if path.exists():
        store_value(connection, schema, PRIVACY, path.read_text())


def store_copy(destination: Destination) -> None:
    """Update the copy of the record in the tables that the job writes."""
    destination.write_table(PRIVACY, lambda connection, schema: store(connection, destination.workspace, schema))


def read_copy(destination: Destination) -> Record | None:
    """Read the copy of the record from the tables that the job writes, or else from the published ones."""
    text: str | None = None
    if destination.has_tables():
        with destination.open_job_tables() as connection:
            text = read_value(connection, destination.write_schema, PRIVACY)
    elif destination.exists():
        with destination.open_reader() as connection:
            text = read_value(connection, DATASET, PRIVACY)
    with suppress(msgspec.DecodeError, TypeError):  # somebody has changed the column
        return None if text is None else msgspec.json.decode(text, type=Record)
    return None


def restore_record(destination: Destination) -> str:
    """Restore a lost record from its copy, so that erased people stay erased, and a policy stays as strict as it was.

    Returns what to report: empty, unless the record was damaged. One that is damaged while more people may have been
    erased than the copy has stays damaged, and reading it is refused. Rows without a copy were loaded without a policy.
    Raises `UsageError` if the tables cannot be reached.
    """
    workspace = destination.workspace
    path, is_damaged = workspace.folder / FILE, False
    try:
        if Record.load(workspace) is not None or not workspace.folder.exists():
            return ""
    except UsageError:
        has_lost_work = workspace.destination == "duckdb" and not workspace.work.exists()
        if has_lost_work or workspace.has_privacy_work:
            return ""
        is_damaged = True
    is_empty = not has_rows(workspace)
    try:
        record = read_copy(destination)
    except duckdb.IOException:
        if is_empty:
            raise
        return ""  # a job has the file open, and has restored the record
    except UsageError:
        # Runs in this folder had no record, so a damaged published file holds none.
        if workspace.destination != "duckdb" or not (workspace.folder / RUN_LOG).exists():
            raise
        return ""
    if record is None and is_empty and destination.has_tables():
        record = Record()
    if record is None:
        return ""
    moved = move_damaged(path).name if is_damaged else ""
    record.save(workspace)
    return f"{path} was damaged: restored from the warehouse; the damaged file is now {moved}" if is_damaged else ""


def open_vault(settings: Settings) -> Vault | None:
    """Open the configured vault; null without one, or without a policy. Raises `InputFileError`."""
    return Vault(settings.vault) if settings.vault and settings.policy.redacts else None


def build_pseudonymizer(settings: Settings) -> Pseudonymizer | None:
    """Build what makes pseudonyms with the configured key; null without a key.

    Raises `ConfigurationError` if the policy needs a key, or the key could be guessed.
    """
    key = settings.privacy_key
    return Pseudonymizer.from_key(key) if key or settings.policy.redacts else None


def look_up(names: Iterable[str], settings: Settings) -> dict[str, str | None]:
    """Return the handle of each pseudonym, null if unknown, and the pseudonym of each number or address.

    Raises `UsageError` without a key, and for a pseudonym without a vault.
    """
    vault, pseudonyms = open_vault(settings), build_pseudonymizer(settings)
    if pseudonyms is None:
        raise UsageError(f"[{SECTION}] has no key, so there are no pseudonyms; set key in dlt_config/secrets.toml")
    answers: dict[str, str | None] = {}
    for name in names:
        if not PSEUDONYM.fullmatch(name):
            answers[name] = pseudonyms.handle(name)
        elif vault is None:
            raise UsageError(
                f"only a vault can resolve pseudonyms, and none is configured; set [{SECTION}] vault to its path"
            )
        else:
            answers[name] = vault.find_handle(name)
    if not answers:
        raise UsageError("privacy lookup takes pseudonyms, or numbers and addresses; - reads them from standard input")
    return answers


def build_redactor(workspace: Workspace, settings: Settings) -> Redactor:
    """Build the redactor of the configured policy, and record the policy next to an empty warehouse.

    A vault that cannot be used is left out; `open_vault` says why. Raises `UsageError` if the stored rows were loaded
    under another policy, or with another key.
    """
    policy, pseudonyms = settings.policy, build_pseudonymizer(settings)
    confirmed_at = _read_confirmed_at(workspace)

    def now() -> datetime:
        return limit_unconfirmed(datetime.now(UTC), confirmed_at)

    record = Record.load(workspace)
    if record is None:
        if not policy.redacts:
            return Redactor(policy, now=now)
        if has_rows(workspace):
            raise _not_applied(policy, FULL)
        record = Record(policy, pseudonyms.check if pseudonyms else None)
        record.save(workspace)
    # `text_days` and `thread_days` change no stored rows: they take effect with the next run.
    if any(getattr(record.policy, name) != getattr(policy, name) for name in ORDERS):
        raise _not_applied(policy, record.policy)
    check_key(record, pseudonyms)
    vault = None
    with suppress(InputFileError):
        vault = open_vault(settings)
    return Redactor(policy, pseudonyms, record.erased, vault, now)


def read_ages_from(workspace: Workspace) -> datetime:
    """Return the time that ages count from: now, but at most a day after the latest run in which the API answered.

    This machine's clock alone, which may be wrong, removes no rows. Before the first such run, nothing is old.
    """
    return limit_unconfirmed(datetime.now(UTC), _read_confirmed_at(workspace))


def save_confirmed_at(workspace: Workspace, policy: Policy, clock: Clock) -> None:
    """Save when the API last answered, if it has."""
    if clock.confirmed_at is not None and (policy.text_days or policy.thread_days):
        write_privately(workspace.folder / CONFIRMED, json.dumps(clock.confirmed_at.isoformat()))


def _read_confirmed_at(workspace: Workspace) -> datetime | None:
    with suppress(TypeError, ValueError):
        return datetime.fromisoformat(read_json(workspace.folder / CONFIRMED))
    return None


def check_key(record: Record, pseudonyms: Pseudonymizer | None) -> None:
    """Check that the key is the one of the stored rows. Raises `UsageError`."""
    if record.key_check is None or (pseudonyms is not None and pseudonyms.check == record.key_check):
        return
    raise UsageError(
        f"[{SECTION}] key{'' if pseudonyms else ' is missing, and'} is not the one that this warehouse was "
        "filled with. With another key, everybody would get a second pseudonym, and erased people would come back. "
        "Restore that key, or start a new warehouse with another --database"
    )


def save_found_chats(destination: Destination, redactor: Redactor) -> None:
    """Record chats that turned out to be an erased person's, so that they are not requested again."""
    record = Record.load(destination.workspace)
    if redactor.found_chats and record is not None:
        record.with_erased(redactor.found_chats).save(destination.workspace)
        store_copy(destination)


def check_stricter(policy: Policy, before: Policy) -> None:
    """Check that a policy stores nothing that an earlier one dropped. Raises `UsageError`."""
    loosened = policy.loosened(before)
    if loosened:
        raise UsageError(
            f"[{SECTION}] keeps more than this warehouse was filled with ({', '.join(loosened)}), and dropped data is "
            "gone: start a new warehouse with another --database, which reads everything again, or set "
            f"{'it' if len(loosened) == 1 else 'them'} back"
        )


def _not_applied(policy: Policy, before: Policy) -> UsageError:
    check_stricter(policy, before)
    return UsageError(
        f"[{SECTION}] is stricter than the policy of the stored rows; apply it to them with: "
        "python pipelines/chats.py privacy apply"
    )


def is_folder_lost(workspace: Workspace) -> bool:
    """Return whether the job's own files are lost, and with them the record, of which the published file has a copy."""
    return workspace.destination == "duckdb" and workspace.database.exists() and not workspace.work.exists()


def has_rows(workspace: Workspace) -> bool:
    """Return whether anything was ever loaded, received or requested here."""
    folder = workspace.folder
    paths = (workspace.work, workspace.database, workspace.dlt_folder / PIPELINE, folder / "groups.sqlite")
    return any(path.exists() for path in paths) or any((folder / "webhooks" / "spool").glob("*"))


def describe_error(error: BaseException, workspace: Workspace) -> str:
    """Return the traceback of an error, for a file.

    Under a policy, it has only the types of the errors and the lines of code, because messages may quote rows.
    """
    try:
        record = Record.load(workspace)
        is_lost = record is None and is_folder_lost(workspace)
        is_private = is_lost or (record is not None and (record.policy.redacts or bool(record.erased)))
    except (UsageError, OSError, duckdb.Error):
        is_private = True
    if not is_private:
        return "".join(traceback.format_exception(error))
    lines = ((f"{type(cause).__name__}\n", *traceback.format_tb(cause.__traceback__)) for cause in list_causes(error))
    return "".join(line for of_cause in lines for line in of_cause)


def read_own_numbers(destination: Destination) -> list[str]:
    """Read the account's own numbers from the tables that the job writes; empty before the first load."""
    with destination.open_writer() as connection, suppress(duckdb.CatalogException):
        query = f"SELECT handle FROM {destination.write_schema}.numbers"  # noqa: S608
        return [handle for (handle,) in connection.execute(query).fetchall()]
    return []
