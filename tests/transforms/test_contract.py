"""What readers and the job may rely on: names, documentation, copies of the file, tests that find faults, silence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

MODELS = {
    "staging": {
        "stg_chats",
        "stg_chat_titles",
        "stg_messages",
        "stg_attachments",
        "stg_numbers",
        "loads",
        "thread_sizes",
        "chats_to_build",
    },
    "marts": {"thread_activity", "group_membership", "chat_title_history"},
}


@pytest.fixture(scope="module")
def built(new_warehouse: Callable[[], Any], at: Any) -> Path:
    """A file with one group, a title, a message and an attachment, built."""
    warehouse = new_warehouse()
    message = {
        "cursor_at": at(1),
        "direction": "inbound",
        "status": "received",
        "channel": "sms",
        "sender_handle": "+2",
    }
    warehouse.load(
        "1",
        chats=[{"id": "g", "is_group": True, "from_handle": "+1", "title": "T", "created_at": at(0)}],
        chat_titles=[{"chat_id": "g", "title": "T", "updated_at": at(0)}],
        messages=[message | {"id": "m", "conversation_id": "g"}],
        attachments=[{"id": "a", "message_id": "m"}],
        numbers=[{"handle": "+1"}],
    )
    warehouse.transform()
    return warehouse.path.rename(warehouse.path.with_name("built.duckdb"))


@pytest.fixture
def filled(built: Path, warehouse: Any) -> Any:
    shutil.copy(built, warehouse.path)
    return warehouse


def test_the_schemas_hold_these_relations_and_no_others(filled: Any) -> None:
    relations: dict[str, set[str]] = {}
    for row in filled.rows("select table_schema, table_name from information_schema.tables"):
        relations.setdefault(row["table_schema"], set()).add(row["table_name"])
    assert relations.pop("msgbubbles")
    assert relations == {"staging": MODELS["staging"] | {"built_loads"}, "marts": MODELS["marts"]}


def test_every_column_is_documented_and_no_other(filled: Any) -> None:
    manifest = filled.dbt("parse").result
    documented = {node.name: node for node in manifest.nodes.values() if node.resource_type == "model"}
    assert set(documented) == MODELS["staging"] | MODELS["marts"]
    for schema, names in MODELS.items():
        for name in names:
            columns = [row["column_name"] for row in filled.rows(f"describe {schema}.{name}")]
            assert list(documented[name].columns) == columns, name
            assert all(column.description for column in documented[name].columns.values()), name
            assert "Grain is" in documented[name].description, name
            assert "Owner is" in documented[name].description, name


def test_a_copy_under_another_name_is_readable(filled: Any, tmp_path: Path) -> None:
    copy = tmp_path / "ware house-2.duckdb"
    shutil.copy(filled.path, copy)
    filled.execute("drop schema staging cascade", "drop schema marts cascade")
    names = [f"{schema}.{name}" for schema, models in MODELS.items() for name in models]
    with duckdb.connect(str(copy), read_only=True) as connection:
        rows = {name: len(connection.execute(f"from {name}").fetchall()) for name in names}
    with duckdb.connect() as connection:
        connection.execute(f"attach '{copy}' as elsewhere (read_only)")
        attached = {name: len(connection.execute(f"from elsewhere.{name}").fetchall()) for name in names}
    assert rows == attached
    assert {name for name, count in rows.items() if count == 0} == {"staging.chats_to_build"}


def outcomes(warehouse: Any) -> dict[str, str]:
    answer = warehouse.dbt("test")
    assert answer.exception is None
    return {node.node.name: str(node.status) for node in answer.result}


def test_the_data_tests_pass_on_sound_rows_and_find_each_fault(filled: Any) -> None:
    sound = outcomes(filled)
    assert {name: status for name, status in sound.items() if status not in ("pass", "success")} == {}
    filled.execute(
        "insert into msgbubbles.chats (id, _dlt_load_id) values ('twice', '1'), ('twice', '1')",
        "insert into msgbubbles.numbers (handle, _dlt_load_id) values ('+1', '1')",
        "insert into msgbubbles.attachments (id, message_id, _dlt_load_id) values ('a', 'm', '1'), ('b', 'gone', '1')",
        "insert into msgbubbles.messages (id, conversation_id, direction, status, channel, _dlt_load_id) values"
        " ('m', 'g', 'up', 'lost', 'fax', '1'), ('dangling', 'gone', null, null, null, '1')",
        "insert into marts.thread_activity by name from (from marts.thread_activity)",
        "update marts.thread_activity set waiting_on = 'godot', deleted_at = now(), messages_inbound = 9,"
        " messages_failed = 9, first_message_at = latest_message_at + interval 1 second",
        "insert into marts.group_membership by name from (from marts.group_membership)",
        "insert into marts.group_membership by name (select 'gone' as chat_id, 'hearsay' as evidence)",
        "update marts.group_membership set message_count = 9, first_seen_at = last_seen_at + interval 1 second",
        "insert into msgbubbles.chat_titles from msgbubbles.chat_titles",
        "insert into msgbubbles.chat_titles values ('gone', 'T', null, now(), '1')",
        "insert into marts.chat_title_history from marts.chat_title_history",
        "insert into marts.chat_title_history by name (select 'gone' as chat_id)",
        "update marts.chat_title_history set title = 'other', valid_from = first_seen_at + interval 1 second,"
        " valid_to = first_seen_at where chat_id = 'g'",
    )
    assert {name: status for name, status in outcomes(filled).items() if status not in ("pass", "success")} == {
        "unique_stg_chats_chat_id": "fail",
        "unique_stg_numbers_handle": "fail",
        "unique_stg_attachments_attachment_id": "fail",
        "relationships_stg_attachments_message_id__message_id__ref_stg_messages_": "warn",
        "unique_stg_messages_message_id": "fail",
        "relationships_stg_messages_chat_id__chat_id__ref_stg_chats_": "warn",
        "accepted_values_stg_messages_direction__inbound__outbound": "warn",
        "accepted_values_stg_messages_status__queued__sent__delivered__read__failed__received": "warn",
        "accepted_values_stg_messages_channel__imessage__sms__whatsapp": "warn",
        "every_message_counts_in_a_thread": "warn",
        "unique_thread_activity_chat_id": "fail",
        "accepted_values_thread_activity_waiting_on__us__them__nobody": "fail",
        "thread_activity_counts_every_message": "fail",
        "thread_activity_directions_within_total": "fail",
        "thread_activity_directions_are_total": "warn",
        "thread_activity_failed_within_outbound": "fail",
        "thread_activity_first_before_latest": "fail",
        "thread_activity_deleted_waits_on_nobody": "fail",
        "relationships_group_membership_chat_id__chat_id__ref_stg_chats_": "fail",
        "not_null_group_membership_handle": "fail",
        "not_null_group_membership_evidence_all": "fail",
        "not_null_group_membership_thread_messages_total": "fail",
        "accepted_values_group_membership_evidence__own_number__message": "fail",
        "unique_together_group_membership_chat_id__handle": "fail",
        "group_membership_messages_within_thread": "fail",
        "group_membership_first_before_last": "fail",
        "relationships_stg_chat_titles_chat_id__chat_id__ref_stg_chats_": "fail",
        "unique_together_stg_chat_titles_chat_id__fetched_at": "fail",
        "relationships_chat_title_history_chat_id__chat_id__ref_stg_chats_": "fail",
        "not_null_chat_title_history_valid_from": "fail",
        "not_null_chat_title_history_is_current": "fail",
        "not_null_chat_title_history_first_seen_at": "fail",
        "unique_together_chat_title_history_chat_id__first_seen_at": "fail",
        "chat_title_history_intervals_meet": "fail",
        "chat_title_history_one_current_title": "fail",
        "chat_title_history_current_has_no_end": "fail",
        "chat_title_history_from_before_to": "fail",
        "chat_title_history_from_before_seen": "fail",
        "chat_title_history_ends_with_the_title_of_the_chat": "warn",
    }


def test_an_empty_file_is_built_with_its_tests_and_fills_later(warehouse: Any) -> None:
    answer = warehouse.dbt("build")
    assert {node.node.name for node in answer.result if node.status not in ("pass", "success")} == set()
    assert {name: warehouse.mart(name) for name in MODELS["marts"]} == {name: [] for name in MODELS["marts"]}
    warehouse.load("1", chats=[{"id": "a", "is_group": True, "from_handle": "+1"}])
    warehouse.transform()
    assert len(warehouse.mart("thread_activity")) == len(warehouse.mart("group_membership")) == 1
    assert warehouse.mart("chat_title_history") == []
    warehouse.load("2", chat_titles=[{"chat_id": "a", "title": "T"}])
    warehouse.transform()
    assert len(warehouse.mart("chat_title_history")) == 1


def test_a_run_is_silent_and_lets_go_of_the_file(filled: Any, capfd: pytest.CaptureFixture[str]) -> None:
    filled.transform()
    filled.execute("alter table msgbubbles.chats drop column title")
    assert not filled.dbt("run").success
    assert capfd.readouterr() == ("", "")
    write = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('create table written (x int)')"
    subprocess.run([sys.executable, "-c", write, str(filled.path)], check=True, timeout=60)


def test_a_changed_mart_is_refused_and_not_half_filled(filled: Any) -> None:
    filled.execute("alter table marts.thread_activity drop column title")
    answer = filled.dbt("run")
    assert {node.node.name for node in answer.result if node.status == "error"} == {"thread_activity"}
    filled.transform("--full-refresh")
    assert "title" in filled.mart("thread_activity")[0]
