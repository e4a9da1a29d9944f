"""Erase people from the tables, the marts and the files, and from what is loaded later.

First, a keyed hash of each is stored in the warehouse's privacy record. So the next run finishes an erasure that was
interrupted, and nobody comes back.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import msgspec
from dlt.common.json import json as dlt_json
from dlt.common.versioned_state import compress_state, decompress_state

from msgbubbles.errors import ConfigurationError
from msgbubbles.handles import parse_handle
from msgbubbles.mentions import MIN_DIGITS, canonical_handle
from msgbubbles.policy import PSEUDONYM, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles.tables import Pii, Table
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.groups.ledger import Ledger
from msgbubbles_sync.policy.applied import Record, build_redactor, read_own_numbers, read_policy
from msgbubbles_sync.policy.vault import Vault
from msgbubbles_sync.settings import TransformSettings, load_settings
from msgbubbles_sync.sql import quote_name
from msgbubbles_sync.tables import ERASURES, GROUP_OPERATIONS, TABLES, column_definitions
from msgbubbles_sync.webhooks.load import dead_letter_folder
from msgbubbles_sync.workspace import Workspace

from .rewrite import rewriting, tables_of

STEP = "erase"


@dataclass
class Certificate:
    """What was erased: `rows` deleted or changed, by table, and how many `people` were found. It names nobody."""

    erasure_id: str = field(default_factory=lambda: uuid4().hex)
    erased_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    people: int = 0
    rows: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {
            "erasure_id": self.erasure_id,
            "erased_at": self.erased_at.isoformat(timespec="seconds"),
            "people": self.people,
            "rows": dict(sorted(self.rows.items())),
        }

    def __str__(self) -> str:
        what = ", ".join(f"{count:,} of {table}" for table, count in sorted(self.rows.items())) or "no rows"
        return f"Erasure {self.erasure_id}, {self.erased_at:%Y-%m-%d %H:%M} UTC: {self.people} people; {what}."


def erase(
    workspace: Workspace, handles: Sequence[str], transforms: TransformSettings, say: Callable[[str], None]
) -> Certificate:
    """Erase the people with these handles, or pseudonyms, from everything in a warehouse, and keep them out.

    The caller holds the locks `job` and `apply`. Raises `UsageError` for what is not a handle or is one of ours,
    without a key, and if rows are on a server.
    """
    _, pseudonyms = read_policy(load_settings(workspace.account))
    if pseudonyms is None:
        try:
            Pseudonymizer.from_key(None)
        except ConfigurationError as error:
            raise UsageError(f"to keep erased people out, {error}") from None
        raise AssertionError
    redactor = build_redactor(workspace)
    build_destination(workspace).prepare()
    if workspace.destination == "duckdb" and not workspace.work.exists():
        raise UsageError(f"erase: nothing has landed in {workspace.database}; is that the --database you mean?")
    if not all(one.strip() and (parse_handle(one) or PSEUDONYM.fullmatch(one) or "@" not in one) for one in handles):
        raise UsageError("erase takes handles: +14155550111, or ben@example.com; one of these is neither")
    if {pseudonyms.handle(one) for one in handles} & {pseudonyms.handle(one) for one in read_own_numbers(workspace)}:
        raise UsageError("erase: one of these is a number of the account itself; its rows are not a person's")
    record = Record.load(workspace) or Record(redactor.policy)
    marks = {pseudonyms.erased_handle(one) for one in handles}
    workspace.set_pending(STEP)
    msgspec.structs.replace(record, key_check=pseudonyms.check).with_erased(marks).save(workspace)
    return purge(workspace, transforms, say, handles)


def purge(
    workspace: Workspace, transforms: TransformSettings, say: Callable[[str], None], also: Collection[str] = ()
) -> Certificate:
    """Remove everybody whom the privacy record says to be erased, wherever they are; `also` are handles that may stand
    in texts only. May be repeated.
    """
    redactor = build_redactor(workspace)
    certificate = Certificate()
    with rewriting(workspace, transforms, say) as connection:
        tables = set(tables_of(connection))
        people = {one for one in _handles_in(connection, tables) if redactor.is_erased(one)}
        certificate.people = len({redactor.pseudonym(one) for one in people})
        rows = _Rows(connection, tables, certificate.rows)
        chats = rows.delete_people(people)
        marks = {redactor.chat_mark(one) for one in chats}
        record = Record.load(workspace)
        if record is not None:
            record.with_erased(marks).save(workspace)
        # Of an erasure that was cut off, only hashes are known.
        rows.forget_mentions({*people, *also} if also else set(), redactor)
        _certify(connection, certificate)
    certificate.rows += _purge_ledger(workspace, redactor)
    _purge_files(workspace, redactor)
    if isinstance(redactor.vault, Vault):
        certificate.rows += Counter({"the vault": redactor.vault.remove(redactor.is_erased)})
    workspace.set_done(STEP)
    return certificate


def _handles_in(connection: duckdb.DuckDBPyConnection, tables: set[str]) -> set[str]:
    found: set[str] = set()
    for table in TABLES.values():
        for column in table.columns_with(Pii.HANDLE, Pii.HANDLES) if table.name in tables else ():
            query = f"SELECT DISTINCT {column.name} FROM msgbubbles.{table.name} WHERE {column.name} IS NOT NULL"
            for (value,) in connection.execute(query).fetchall():
                found.update(json.loads(value) if column.pii is Pii.HANDLES else [value])
    return found


class _Rows:
    """The landed rows, by what is removed of them. `counts` are rows that were deleted or changed, by table."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, tables: set[str], counts: Counter[str]) -> None:
        self._connection = connection
        self._tables = tables
        own = connection.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'msgbubbles'").fetchall()
        self._own_tables = {row[0] for row in own}
        self._counts = counts

    def delete_people(self, people: set[str]) -> list[str]:
        """Delete their threads, and of groups what they wrote and that they were in it. Returns the ids of the
        threads.
        """
        run = self._connection.execute
        run("CREATE OR REPLACE TEMP TABLE people (handle VARCHAR)")
        run("CREATE OR REPLACE TEMP TABLE gone_chats (id VARCHAR)")
        run("CREATE OR REPLACE TEMP TABLE gone_messages (id VARCHAR)")
        if people:
            self._connection.executemany("INSERT INTO people VALUES (?)", [[one] for one in people])
        theirs = "IN (SELECT handle FROM people)"
        if "chats" in self._tables:
            run(
                "INSERT INTO gone_chats SELECT id FROM msgbubbles.chats "
                f"WHERE NOT coalesce(is_group, false) AND remote_handle {theirs}"
            )
        if {"chats", "messages"} <= self._tables:
            # A thread whose chat was never read is taken for theirs where they, and nobody else, wrote to us in it.
            run(
                "INSERT INTO gone_chats SELECT conversation_id FROM msgbubbles.messages "
                "WHERE conversation_id NOT IN (SELECT id FROM msgbubbles.chats) AND direction = 'inbound' "
                f"GROUP BY conversation_id HAVING bool_and(coalesce(sender_handle {theirs}, false))"
            )
            run(
                f"INSERT INTO gone_messages SELECT id FROM msgbubbles.messages "
                f"WHERE sender_handle {theirs} OR conversation_id IN (SELECT id FROM gone_chats)"
            )
        in_chats, in_messages = "IN (SELECT id FROM gone_chats)", "IN (SELECT id FROM gone_messages)"
        groups = self._all(
            f"SELECT DISTINCT chat_id FROM msgbubbles.participant_lists WHERE handle {theirs}", "participant_lists"
        )
        for table in TABLES.values():
            keys = {table.chat_key: in_chats, table.message_key: in_messages, table.person_key: theirs}
            conditions = [f"{column} {condition}" for column, condition in keys.items() if column is not None]
            if conditions:
                self._delete(table.name, " OR ".join(conditions))
        self._remove_from_lists([row[0] for row in groups], people)
        for table in TABLES.values():
            for column in table.columns_with(Pii.HANDLES):
                self._remove_from_column(table, column.name, people)
        return [row[0] for row in run("SELECT DISTINCT id FROM gone_chats").fetchall()]

    def _remove_from_column(self, table: Table, column: str, people: set[str]) -> None:
        """Remove people from the lists of handles in a column."""
        (key,) = table.key
        for key_value, handles in self._all(f"SELECT {key}, {column} FROM msgbubbles.{table.name}", table.name):
            known = json.loads(handles) if handles else []
            left = [one for one in known if one not in people]
            if known and not left and table is GROUP_OPERATIONS:
                self._delete(table.name, f"{key} = ?", key_value)
            elif left != known:
                self._connection.execute(
                    f"UPDATE msgbubbles.{table.name} SET {column} = ? WHERE {key} = ?",
                    [msgspec.json.encode(left).decode(), key_value],
                )
                self._counts[table.name] += 1

    def forget_mentions(self, handles: set[str], redactor: Redactor) -> None:
        """Where a handle stands within a text, put a word in its place; a row that could not be read goes whole.

        Every column of text is looked through, whatever it is for. Without `handles`, everybody is looked for whom the
        redactor knows to be erased.
        """
        for table, kinds in tables_of(self._connection).items():
            for column, kind in kinds.items():
                if kind in ("VARCHAR", "JSON"):
                    self._forget_in(table, column, kind, handles, redactor)
        self._forget_in_state(redactor)

    def _forget_in(self, table: str, column: str, kind: str, handles: set[str], redactor: Redactor) -> None:
        # A query narrows it down; what in a text is a handle, the redactor tells as it does when a text lands.
        written = handles | {redactor.pseudonym(one) for one in handles}
        where, values = _may_hold(f"{quote_name(column)}::VARCHAR", written)
        found = self._connection.execute(
            f"SELECT rowid, {quote_name(column)}::VARCHAR FROM msgbubbles.{quote_name(table)} WHERE {where}", values
        ).fetchall()
        for row_id, text in found:
            if table == "rejected_rows" and redactor.mentions_erased(text):
                self._connection.execute(f"DELETE FROM msgbubbles.{table} WHERE rowid = ?", [row_id])
                self._counts[table] += 1
                continue
            left = redactor.json_without_erased(text) if kind == "JSON" else redactor.without_erased(text)
            if left != text:
                change = f"{quote_name(column)} = CAST(? AS {kind})"
                self._connection.execute(
                    f"UPDATE msgbubbles.{quote_name(table)} SET {change} WHERE rowid = ?", [left, row_id]
                )
                self._counts[table] += 1

    def _forget_in_state(self, redactor: Redactor) -> None:
        """Dlt's state names chats by their ids."""
        if "_dlt_pipeline_state" not in self._own_tables:
            return
        for row_id, packed in self._connection.execute(
            "SELECT rowid, state FROM msgbubbles._dlt_pipeline_state"
        ).fetchall():
            text = dlt_json.typed_dumps(decompress_state(packed))
            left = redactor.json_without_erased(text)
            if left != text:
                self._connection.execute(
                    "UPDATE msgbubbles._dlt_pipeline_state SET state = ? WHERE rowid = ?",
                    [compress_state(dlt_json.typed_loads(left)), row_id],
                )

    def _remove_from_lists(self, chat_ids: list[str], people: set[str]) -> None:
        """Write the lists of these groups as they would have been without them: of lists that are then the same, only
        the first was ever written; one of nobody is a null handle.
        """
        for chat_id in chat_ids:
            before = self._all(
                "SELECT _fetched_at, handle, _dlt_load_id FROM msgbubbles.participant_lists WHERE chat_id = ? "
                "ORDER BY _fetched_at, handle", "participant_lists", chat_id,
            )  # fmt: skip
            lists: dict[datetime, tuple[set[str | None], str]] = {}
            for read_at, handle, load_id in before:
                lists.setdefault(read_at, (set(), load_id))[0].add(handle)
            known: set[str | None] | None = None
            for read_at, (were, load_id) in lists.items():
                handles = were - people or {None}
                if handles == known:
                    self._delete("participant_lists", "chat_id = ? AND _fetched_at = ?", chat_id, read_at)
                    continue
                known = handles
                self._delete(
                    "participant_lists", "chat_id = ? AND _fetched_at = ? AND handle IN (SELECT handle FROM people)",
                    chat_id, read_at,
                )  # fmt: skip
                if handles == {None} != were:
                    self._connection.execute(
                        "INSERT INTO msgbubbles.participant_lists (id, chat_id, handle, _fetched_at, _dlt_load_id) "
                        "VALUES (?, ?, NULL, ?, ?)",
                        [f"{chat_id}|{read_at.isoformat()}|", chat_id, read_at, load_id],
                    )

    def _all(self, query: str, table: str, *values: Any) -> list[Any]:
        return self._connection.execute(query, values).fetchall() if table in self._tables else []

    def _delete(self, table: str, where: str, *values: Any) -> None:
        if table in self._tables:
            row = self._connection.execute(f"DELETE FROM msgbubbles.{table} WHERE {where}", values).fetchone()
            if row and row[0]:
                self._counts[table] += row[0]


def _may_hold(text: str, handles: set[str]) -> tuple[str, list[str]]:
    """A condition for texts, given as SQL, in which one of these handles may stand in any spelling; without handles,
    anybody's.
    """
    # Escapes of JSON, and digits of other scripts.
    others = f"contains({text}, '\\u') OR regexp_matches(regexp_replace({text}, '[0-9]', '', 'g'), '\\p{{Nd}}')"
    if not handles:
        return f"regexp_matches({text}, '[@0-9]') OR contains({text}, 'p_') OR {others}", []
    forms = {form for one in handles for form in (canonical_handle(one), one.strip().lower())}
    numbers = {digits[-MIN_DIGITS:] for form in forms if len(digits := re.sub(r"[^0-9]", "", form)) >= MIN_DIGITS}
    digits_only = f"regexp_replace({text}, '[^0-9]', '', 'g')"
    conditions = [f"contains({digits_only}, ?)"] * len(numbers) + [f"contains(lower({text}), ?)"] * len(forms)
    return " OR ".join([*conditions, others]), [*numbers, *forms]


def _certify(connection: duckdb.DuckDBPyConnection, certificate: Certificate) -> None:
    connection.execute(f"CREATE TABLE IF NOT EXISTS msgbubbles.{ERASURES.name} ({column_definitions(ERASURES)})")
    values = [certificate.erasure_id, certificate.erased_at, certificate.people, json.dumps(certificate.rows)]
    connection.execute(f"INSERT INTO msgbubbles.{ERASURES.name} VALUES (?, ?, ?, ?)", values)


def _purge_ledger(workspace: Workspace, redactor: Redactor) -> Counter[str]:
    if not (workspace.folder / "groups.sqlite").exists():
        return Counter()
    with Ledger.open(workspace.folder) as ledger:
        return Counter({"the ledger of groups": ledger.remove_people(redactor.is_erased, redactor.without_erased)})


def _purge_files(workspace: Workspace, redactor: Redactor) -> None:
    """Lines that are no events are kept as they came: those that name somebody go. The records of runs stay without
    them.
    """
    for path in dead_letter_folder(workspace).glob("*.jsonl"):
        _rewrite(path, lambda line: "" if redactor.mentions_erased(line) else line)
    journal = workspace.folder / "runs.jsonl"
    if journal.exists():
        _rewrite(journal, redactor.json_without_erased)


def _rewrite(path: Path, left_of: Callable[[str], str]) -> None:
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    left = [left_of(line) for line in lines]
    if left != lines:
        write_privately(path, "".join(f"{line}\n" for line in left if line))
