from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import duckdb
import pytest
from dlt.common.versioned_state import compress_state, decompress_state

from helpers.canary import find_words, spellings
from helpers.context import build_context, build_destination
from msgbubbles.policy import PRESETS, Pseudonymizer
from msgbubbles_sync.cli.commands.privacy import apply_policy
from msgbubbles_sync.cli.console import Reporter
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.destinations.compaction import STATES, compact
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.ledger import Entry, Ledger, Observation
from msgbubbles_sync.policy.applied import Record, build_redactor
from msgbubbles_sync.policy.vault import Vault
from msgbubbles_sync.privacy import erase as erasing
from msgbubbles_sync.privacy import reapply
from msgbubbles_sync.privacy.erase import erase
from msgbubbles_sync.privacy.files import purge_files
from msgbubbles_sync.run_log import RunLog
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.tables import TABLES, define_columns
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

ANN, BEN, OURS = "+14155550111", "ben@example.com", "+14155550100"
KEY = "of a test, and long enough to be a key"
AT = datetime(2026, 3, 1, tzinfo=UTC)
CREATED = {
    "numbers": "handle VARCHAR, label VARCHAR",
    "chats": "id VARCHAR, is_group BOOLEAN, remote_handle VARCHAR, title VARCHAR",
    "messages": "id VARCHAR, conversation_id VARCHAR, sender_handle VARCHAR, text VARCHAR, metadata JSON, "
    "direction VARCHAR",
    "participant_lists": "id VARCHAR, chat_id VARCHAR, handle VARCHAR, _fetched_at TIMESTAMPTZ, _dlt_load_id VARCHAR",
    "rejected_rows": "row_hash VARCHAR, row VARCHAR",
    "sync_runs": "run_id VARCHAR PRIMARY KEY, error VARCHAR",
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", KEY)
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        run = connection.execute
        run("CREATE SCHEMA msgbubbles")
        for table, columns in CREATED.items():
            run(f"CREATE TABLE msgbubbles.{table} ({columns})")
        run("CREATE VIEW msgbubbles.of_ann AS SELECT * FROM msgbubbles.messages")
        run("INSERT INTO msgbubbles.numbers VALUES (?, 'Support')", [OURS])
        run("INSERT INTO msgbubbles.sync_runs VALUES ('r1', NULL)")
    return workspace


def put(workspace: Workspace, table: str, *rows: tuple[Any, ...]) -> None:
    with duckdb.connect(str(workspace.work)) as connection:
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO msgbubbles.{table} VALUES ({marks})", rows)


def get(workspace: Workspace, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(workspace.database), read_only=True) as connection:
        return connection.execute(query).fetchall()


def erased(workspace: Workspace, *handles: str) -> dict[str, Any]:
    return erase(build_context(workspace), handles).as_dict()


def test_handle_within_a_text_is_replaced_but_no_longer_one(workspace: Workspace) -> None:
    texts = [
        f"call {ANN}, or 14155550111.", "+141555501112 is another", "041414155550111 too", "nothing",
        f'say "{ANN}"', "Ben@Example.com!", "joben@example.com ben@example.com.au",
    ]  # fmt: skip
    put(
        workspace,
        "messages",
        *[(str(n), "c", OURS, text, json.dumps({"note": text}), None) for n, text in enumerate(texts)],
    )
    assert erased(workspace, ANN, "BEN@example.com")["rows"] == {"messages": 6}
    left = get(workspace, "SELECT text, metadata->>'note' FROM msgbubbles.messages ORDER BY id")
    wanted = ["call [erased], or [erased].", *texts[1:4], 'say "[erased]"', "[erased]!", texts[6]]
    assert left == [(one, one) for one in wanted]


@pytest.mark.parametrize("handle", [ANN, BEN])
def test_erased_handle_survives_in_no_column_and_no_file(workspace: Workspace, handle: str) -> None:
    every, written = spellings(handle), cycle(spellings(handle))
    # A handle in one of these deletes the row. This test is about mentions elsewhere.
    not_theirs = {"id", "chat_id", "conversation_id", "message_id", "handle", "remote_handle", "sender_handle"}

    def value(name: str, kind: str, number: int) -> str:
        if kind == "json":
            return "[]" if name == "handles" else json.dumps({next(written): [next(written), {"of": next(written)}]})
        return str(number) if name in not_theirs else next(written)

    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute("DROP SCHEMA msgbubbles CASCADE; CREATE SCHEMA msgbubbles")
        for table in TABLES.values():
            connection.execute(f"CREATE TABLE msgbubbles.{table.name} ({define_columns(table)})")
            columns = [] if table.name in WITHOUT_PEOPLE else table.text_columns
            if columns:
                names, marks = ", ".join(column.name for column in columns), ", ".join("?" * len(columns))
                connection.executemany(
                    f"INSERT INTO msgbubbles.{table.name} ({names}) VALUES ({marks})",
                    [[value(column.name, column.type, number) for column in columns] for number in range(len(every))],
                )
    record: Any = {"run_id": "r", "started_at": "", "outcome": "", "exit_status": 0}
    for one in every:
        RunLog(workspace.folder).add(record | {"streams": {"chats": {"new_fields": [one]}}, one: {one: one}})
    dead_letters = workspace.folder / "webhooks" / "malformed"
    dead_letters.mkdir(parents=True)
    (dead_letters / "1.jsonl").write_text("".join(f'{{"of": "{one}"\n' for one in every) + "of somebody else\n")
    assert {"attachments", "chat_titles", "group_operations", "sync_runs"} <= erased(workspace, handle)["rows"].keys()
    assert find_words(workspace.database.parent, [*every, *(json.dumps(one)[1:-1] for one in every)]) == {}
    assert (dead_letters / "1.jsonl").read_text() == "of somebody else\n"
    assert len(RunLog(workspace.folder).records()) == len(every)
    assert get(workspace, "SELECT count(*) FROM msgbubbles.attachments") == [(len(every),)]


# They hold only hashes and counts, which an erasure writes.
WITHOUT_PEOPLE = ("privacy", "erasures")


def test_state_holds_no_id_and_no_fingerprint_of_a_person(workspace: Workspace) -> None:
    chats = {"seen": ["fingerprint"], "missed": {f"chat with {ANN}": 1}, "covered": [[0, 1, 2]]}
    states: list[Any] = [
        {"sources": {"msgbubbles": {"resources": {"chats": {**chats, "seen_ms": at}}}}} for at in (1, 2)
    ]
    build_destination(workspace).prepare()  # adds the columns that all loaded tables have, and clears states
    with duckdb.connect(str(workspace.work)) as connection:
        columns = "pipeline_name VARCHAR, version BIGINT, state VARCHAR, _dlt_load_id VARCHAR"
        connection.execute(f"CREATE TABLE msgbubbles.{STATES} ({columns})")
    put(workspace, STATES, *(("msgbubbles", at, compress_state(state), str(at)) for at, state in enumerate(states)))
    erased(workspace, ANN)
    with duckdb.connect(str(workspace.work), read_only=True) as connection:
        stored = connection.execute(f"SELECT state FROM msgbubbles.{STATES}").fetchall()
    [state] = [decompress_state(packed) for (packed,) in stored]
    left = {"missed": {"chat with [erased]": 1}, "covered": [[0, 1, 2]], "seen_ms": 2}
    assert state["sources"]["msgbubbles"]["resources"]["chats"] == left


def test_participant_lists_are_as_if_the_person_never_joined(workspace: Workspace) -> None:
    lists = [(1, {ANN, BEN}), (2, {BEN}), (3, {ANN}), (4, {ANN, OURS}), (5, {ANN})]
    put(
        workspace, "participant_lists",
        *[(f"g|{day}|{one}", "g", one, AT.replace(day=day), "1") for day, handles in lists for one in handles],
    )  # fmt: skip
    erased(workspace, ANN)
    left = get(workspace, "SELECT day(_fetched_at), handle FROM msgbubbles.participant_lists ORDER BY 1, 2")
    assert left == [(1, BEN), (3, None), (4, OURS), (5, None)]


def test_chats_and_rejected_rows_are_deleted_whole(workspace: Workspace) -> None:
    put(workspace, "chats", ("c1", False, ANN, None), ("c2", False, BEN, None), ("g", True, "group:1", ANN))
    put(
        workspace, "messages",
        *(
            (str(number), chat, sender, "text", None, "outbound" if sender == OURS else "inbound")
            for number, (chat, sender) in enumerate(
                [("c1", ANN), ("c1", OURS), ("c2", BEN), ("g", ANN), ("never read", ANN), ("never read", OURS),
                 ("unread group", ANN), ("unread group", BEN), ("unread group", OURS)]
            )
        ),
    )  # fmt: skip
    put(workspace, "rejected_rows", ("a", json.dumps({"sender": ANN})), ("b", json.dumps({"sender": BEN})))
    counts = erased(workspace, ANN)
    assert counts["people"] == 1
    assert counts["rows"] == {"chats": 2, "messages": 6, "rejected_rows": 1}
    assert get(workspace, "SELECT id, title FROM msgbubbles.chats ORDER BY id") == [("c2", None), ("g", "[erased]")]
    assert get(workspace, "SELECT id FROM msgbubbles.messages ORDER BY id") == [("2",), ("7",), ("8",)]
    assert get(workspace, "SELECT row_hash FROM msgbubbles.rejected_rows") == [("b",)]
    assert get(workspace, "SELECT count(*) FROM msgbubbles.of_ann") == [(3,)]
    assert get(workspace, "SELECT people, rows->>'messages' FROM msgbubbles.erasures") == [(1, "6")]
    redactor = build_redactor(workspace, load_settings())
    assert [redactor.is_erased_chat(one) for one in ("c1", "never read", "c2", "g", "unread group")] == [True, True] + [
        False
    ] * 3
    assert find_words(workspace.database.parent, [ANN[1:]]) == {}
    assert erased(workspace, ANN)["rows"] == {}


def test_erasure_removes_chats_that_events_show_without_the_other_side(workspace: Workspace) -> None:
    with duckdb.connect(str(workspace.work)) as connection:
        for table in ("chats", "messages"):
            connection.execute(f"ALTER TABLE msgbubbles.{table} ADD COLUMN from_event_at TIMESTAMPTZ")
    put(
        workspace, "chats",
        ("read", False, None, None, None), ("theirs", None, None, None, AT), ("anybody's", None, None, None, AT),
        ("known", None, ANN, None, AT), ("another's", None, BEN, None, AT),
    )  # fmt: skip
    put(
        workspace, "messages",
        *(
            (chat, chat, sender, "text", None, "inbound" if sender else "outbound", AT)
            for chat, sender in (("read", None), ("theirs", ANN), ("anybody's", None), ("known", None),
                                 ("another's", BEN))
        ),
        ("of the feed", "anybody's", None, "text", None, "outbound", None),
    )  # fmt: skip
    assert erased(workspace, ANN)["rows"] == {"chats": 3, "messages": 3}
    assert get(workspace, "SELECT id FROM msgbubbles.chats ORDER BY id") == [("another's",), ("read",)]
    stored = [("another's",), ("of the feed",), ("read",)]
    assert get(workspace, "SELECT id FROM msgbubbles.messages ORDER BY id") == stored
    redactor = build_redactor(workspace, load_settings())
    # The next sync finds out whose the other chat is.
    assert [redactor.is_erased_chat(chat) for chat in ("theirs", "known", "anybody's")] == [True, True, False]


def test_erased_person_is_removed_from_the_ledger_of_groups(workspace: Workspace) -> None:
    with Ledger.open(workspace.folder) as ledger:
        made: list[tuple[Any, tuple[str, ...]]] = [("create", (ANN, BEN)), ("add", (ANN,)), ("remove", (BEN,))]
        entries = [
            Entry(
                kind,
                "p",
                "north",
                kind,
                "g",
                OURS,
                handles,
                None,
                None,
                None,
                AT,
                AT,
                AT,
                "succeeded",
                error_message=ANN,
            )
            for kind, handles in made
        ]
        ledger.restore(entries, [Observation("north", "g", OURS, None, (ANN, BEN), False, AT)])
    put(workspace, "chats", ("c1", False, ANN, None))
    assert erased(workspace, ANN)["rows"]["the ledger of groups"] == 4
    with Ledger.open(workspace.folder) as ledger:
        assert [(one.operation, one.handles) for one in ledger.list_entries()] == [
            ("create", (BEN,)),
            ("remove", (BEN,)),
        ]
        assert ledger.list_observations()[0].handles == (BEN,)
    assert find_words(workspace.folder, [ANN[1:]]) == {}
    with closing(sqlite3.connect(workspace.folder / "groups.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_interrupted_erasure_is_finished_without_the_handles(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workspace, "chats", ("c1", False, ANN, None))
    (workspace.folder / f"{workspace.work.name}.damaged-1").write_text(ANN)

    def killed(_work: Path, _options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("msgbubbles_sync.destinations.duckdb_file.compact", killed)
        with pytest.raises(KeyboardInterrupt):
            erased(workspace, ANN)
    assert workspace.is_pending("erase")
    assert build_redactor(workspace, load_settings()).is_erased("+1 415 555 0111")
    erasing.purge(build_context(workspace))
    assert not workspace.is_pending("erase")
    assert get(workspace, "SELECT count(*) FROM msgbubbles.chats") == [(0,)]
    assert purge_files(build_context(workspace)) == (Counter(), [])
    assert find_words(workspace.database.parent, [ANN[1:]]) == {}


def test_erasure_finishes_an_interrupted_change_of_the_policy_first(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workspace, "chats", ("c1", False, ANN, None), ("c2", False, BEN, None))
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute("DROP TABLE msgbubbles.rejected_rows")  # it lacks columns
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "analytics")
    with monkeypatch.context() as patch:
        patch.setattr(reapply, "redact_stored_rows", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reapply.apply(build_context(workspace))
    assert erased(workspace, ANN)["rows"] == {"chats": 1}
    assert get(workspace, "SELECT id, remote_handle ^@ 'p_' FROM msgbubbles.chats") == [("c2", True)]
    assert not workspace.is_pending("policy", "erase")


def test_change_of_the_policy_finishes_an_interrupted_erasure_before_readers_see_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workspace, "chats", ("c1", False, ANN, None), ("c2", False, BEN, None))
    put(workspace, "messages", ("m1", "c1", ANN, "of Ann", None, "inbound"), ("m2", "c2", BEN, "", None, "inbound"))
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute("DROP TABLE msgbubbles.rejected_rows")  # it lacks columns
    with monkeypatch.context() as patch:
        patch.setattr(erasing, "_delete_people", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erased(workspace, ANN)
        patch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "analytics")
        with pytest.raises(KeyboardInterrupt):
            apply_policy(Session(build_context(workspace), Reporter(quiet=True), sandbox=True))
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "analytics")
    assert not workspace.database.exists(), "readers get nothing before the erasure is finished"
    assert apply_policy(Session(build_context(workspace), Reporter(quiet=True), sandbox=True)) == 0
    assert get(workspace, "SELECT id, remote_handle ^@ 'p_' FROM msgbubbles.chats") == [("c2", True)]
    assert get(workspace, "SELECT id FROM msgbubbles.messages") == [("m2",)]
    assert not workspace.is_pending("policy", "erase", "publish")


@pytest.mark.parametrize(
    ("handle", "message"), [(OURS, "number of the account itself"), ("ben@", "neither"), ("", "neither")]
)
def test_own_number_or_invalid_handle_is_refused_without_changes(
    workspace: Workspace, handle: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        erased(workspace, handle)
    assert Record.load(workspace) is None


def test_erasure_and_later_loads_require_the_key(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("SOURCES__MSGBUBBLES__PRIVACY__KEY")
        with pytest.raises(UsageError, match="token_hex"):
            erased(workspace, ANN)
    erased(workspace, ANN)
    for key in (None, KEY + "."):
        if key is None:
            monkeypatch.delenv("SOURCES__MSGBUBBLES__PRIVACY__KEY")
        else:
            monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", key)
        with pytest.raises(UsageError, match="not the one"):
            build_redactor(workspace, load_settings())


def test_damaged_files_keep_nobody_from_being_erased(workspace: Workspace) -> None:
    put(workspace, "messages", ("m1", "c", OURS, f"call {ANN}", None, None))
    for path in (workspace.database, workspace.folder / "groups.sqlite"):
        path.write_bytes(b"not a database" * 500)
    certificate = erased(workspace, ANN)
    assert certificate["rows"] == {"messages": 1}
    assert f"{workspace.folder}/groups.sqlite is damaged" in certificate["out_of_reach"][-1]
    assert workspace.is_pending("privacy_files")
    assert get(workspace, "SELECT text FROM msgbubbles.messages") == [("call [erased]",)]


def test_erasures_are_restored_from_the_published_file(workspace: Workspace) -> None:
    erased(workspace, ANN)
    for path in (workspace.work, workspace.folder / "privacy.json"):
        path.unlink()
    assert build_context(workspace).redactor.is_erased(ANN)
    record = Record.load(workspace)
    assert record is not None
    assert record.erased == {Pseudonymizer(KEY).erased_handle(ANN)}


def test_compacted_database_has_the_same_rows_and_constraints(workspace: Workspace) -> None:
    put(workspace, "chats", ("c1", False, ANN, None))
    compact(workspace.work)
    with duckdb.connect(str(workspace.work)) as connection:
        assert connection.execute("SELECT id FROM msgbubbles.chats").fetchall() == [("c1",)]
        with pytest.raises(duckdb.ConstraintException):
            connection.execute("INSERT INTO msgbubbles.sync_runs VALUES ('r1', NULL)")
    assert workspace.work.stat().st_mode & 0o777 == 0o600


def test_erased_person_is_removed_from_the_vault(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names, path = Pseudonymizer(KEY), tmp_path / "elsewhere" / "vault.sqlite"
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "analytics")
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__VAULT", str(path))
    Record(PRESETS["analytics"], names.check).save(workspace)
    vault = Vault(path)
    for handle in (ANN, BEN):
        vault.add(names.handle(handle), handle)
    vault.save()
    put(workspace, "chats", ("c", False, names.handle(ANN), None))
    assert erased(workspace, ANN)["rows"] == {"chats": 1, "the vault": 1}
    assert [vault.find_handle(names.handle(one)) for one in (ANN, BEN)] == [None, BEN]
    assert find_words(path.parent, [ANN.removeprefix("+"), names.handle(ANN)]) == {}
