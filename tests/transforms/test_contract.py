"""Tests of what readers and the job rely on: names, descriptions, copies of the file, data tests, silence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from helpers.catalog import describe
from helpers.diagram import entity_diagram
from helpers.sizes import IS_NIGHTLY
from msgbubbles.source.state import FailedRead
from msgbubbles_sync.dbt.plan import Plan
from msgbubbles_sync.destinations.comments import read_comments
from msgbubbles_sync.inspect import activity
from msgbubbles_sync.run_log import store_failed_reads
from msgbubbles_sync.tables import TABLES

from .conftest import separate

ROOT = Path(__file__).parents[2]
README = (ROOT / "transforms" / "README.md").read_text()
MODELS = {
    "staging": {
        "stg_chats",
        "stg_chat_titles",
        "stg_messages",
        "stg_attachments",
        "stg_numbers",
        "stg_stream_coverage",
        "stg_failed_reads",
        "stg_participant_lists",
        "stg_contact_aliases",
        "stg_group_operations",
        "stg_group_member_operations",
        "stg_webhook_events",
        "loads",
        "unbuilt_loads",
        "changed_messages",
        "chats_to_build",
        "int_thread_messages",
        "int_thread_days",
        "int_thread_measures",
        "int_typing_spells",
        "int_contact_replies",
        "int_business_hours",
    },
    "marts": {
        "thread_activity",
        "thread_activity_daily",
        "thread_activity_hours",
        "number_activity_daily",
        "group_membership",
        "contact",
        "contact_monthly",
        "contact_retention",
        "chat_title_history",
        "typing_daily",
        "thread_turns",
        "thread_sessions",
        "sla_events",
        "sla_daily",
        "calendar",
        "backlog_daily",
        "delivery_daily",
        "reactions_daily",
        "attachments_daily",
    },
}


@pytest.fixture(scope="module")
def built(new_warehouse: Callable[[], Any], at: Any) -> Path:
    """Build a file with one group, direct chat, title and attachment, and two messages."""
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
        chats=[
            {"id": "g", "is_group": True, "from_handle": "+1", "title": "T", "created_at": at(0)},
            {"id": "d", "is_group": False, "from_handle": "+1", "remote_handle": "+2", "created_at": at(0)},
        ],
        chat_titles=[{"chat_id": "g", "title": "T", "updated_at": at(0)}],
        messages=[message | {"id": "m", "conversation_id": "g"}, message | {"id": "n", "conversation_id": "d"}],
        attachments=[{"id": "a", "message_id": "m"}],
        numbers=[{"handle": "+1"}],
        stream_coverage=[{"stream": "messages", "complete_since": at(0), "complete_to": at(2)}],
        participant_lists=[{"id": "l", "chat_id": "g", "handle": "+2"}],
        group_operations=[{"operation_id": "o", "operation": "add", "chat_id": "g", "outcome": "succeeded"}],
        group_member_operations=[
            {"id": "p", "operation_id": "o", "chat_id": "g", "handle": "+3", "operation": "added", "happened_at": at(1)}
        ],
        webhook_events=[
            {
                "event_id": "e",
                "event_type": "conversation.typing",
                "chat_id": "g",
                "occurred_at": at(1),
                "received_at": at(1),
            }
        ],
    )
    with duckdb.connect(str(warehouse.path)) as connection:
        store_failed_reads(connection, [FailedRead("numbers", "numbers", 0, 0, 1)], "msgbubbles")
    warehouse.transform()
    path: Path = warehouse.path.rename(warehouse.path.with_name("built.duckdb"))
    return path


@pytest.fixture
def filled(built: Path, warehouse: Any) -> Any:
    shutil.copy(built, warehouse.path)
    return warehouse


def test_schemas_contain_exactly_these_relations(filled: Any) -> None:
    relations: dict[str, set[str]] = {}
    for row in filled.rows("select table_schema, table_name from information_schema.tables"):
        relations.setdefault(row["table_schema"], set()).add(row["table_name"])
    assert relations.pop("msgbubbles")
    assert relations == {
        "staging": MODELS["staging"] | {"built_loads", "days_to_build", "thread_chats", "thread_tails"},
        "marts": MODELS["marts"],
    }


def test_every_column_is_documented_and_no_others(filled: Any) -> None:
    manifest = filled.load_manifest()
    documented = {node.name: node for node in manifest.nodes.values() if node.resource_type == "model"}
    assert set(documented) == MODELS["staging"] | MODELS["marts"]
    columns: dict[tuple[str, str], list[str]] = {}
    for row in filled.rows("select * from information_schema.columns order by ordinal_position"):
        columns.setdefault((row["table_schema"], row["table_name"]), []).append(row["column_name"])
    for schema, names in MODELS.items():
        for name in names:
            assert list(documented[name].columns) == columns[schema, name], name
            assert all(column.description for column in documented[name].columns.values()), name
            assert documented[name].description.startswith("One row per "), name
            assert manifest.groups[f"group.msgbubbles.{documented[name].group}"].owner.name, name


def test_descriptions_are_comments_in_the_database(filled: Any, capfd: pytest.CaptureFixture[str]) -> None:
    filled.transform()  # an increment, which creates the views again
    assert capfd.readouterr() == ("", "")
    manifest = filled.load_manifest()
    described = {node.name: describe(node) for node in manifest.nodes.values() if node.resource_type == "model"}
    with duckdb.connect(str(filled.path), read_only=True) as connection:
        comments = read_comments(connection, filled.path.stem)
    assert {name: comments[schema, name] for schema, names in MODELS.items() for name in names} == described
    assert all(described["thread_activity"].values())


@dataclass(frozen=True)
class Documentation:
    """The artifacts of `make docs`."""

    manifest: dict[str, Any]
    catalog: dict[str, Any]
    page: str

    @property
    def models(self) -> dict[str, Any]:
        return {node["name"]: node for node in self.manifest["nodes"].values() if node["resource_type"] == "model"}

    @property
    def columns(self) -> dict[str, list[str]]:
        """Return the columns of each existing model and source."""
        nodes = [*self.catalog["nodes"].values(), *self.catalog["sources"].values()]
        return {node["metadata"]["name"]: list(node["columns"]) for node in nodes}


@pytest.fixture(scope="module")
def documentation(built: Path, new_warehouse: Callable[[], Any]) -> Documentation:
    recipe = subprocess.run(
        ["make", "--dry-run", "docs", f"DATABASE={built}"],  # noqa: S607 - the user's make
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [command] = re.findall(r"dbt (docs generate .*?) \\\n", recipe)
    warehouse = new_warehouse()
    try:
        shutil.copy(built, warehouse.path)
        answer = warehouse.dbt(*command.split())
    finally:
        warehouse.path.unlink()
    assert (answer.success, answer.exception) == (True, None)
    manifest, catalog = (
        json.loads((warehouse.target / f"{name}.json").read_text()) for name in ("manifest", "catalog")
    )
    return Documentation(manifest, catalog, (warehouse.target / "static_index.html").read_text())


def test_documentation_has_every_relation_with_its_columns(documentation: Documentation) -> None:
    assert documentation.models.keys() == MODELS["staging"] | MODELS["marts"]
    for name, model in documentation.models.items():
        assert list(model["columns"]) == documentation.columns[name]
    assert "Median reply time of ours in seconds" in documentation.page
    assert "Null means unknown or not read" in documentation.page


def test_sources_list_the_columns_of_the_registry(documentation: Documentation) -> None:
    sources = {node["name"]: node for node in documentation.manifest["sources"].values()}
    assert all(source["description"] for source in sources.values())
    listed = {name: [*source["columns"]] for name, source in sources.items() if source["source_name"] == "msgbubbles"}
    assert listed.pop("_dlt_loads") == []
    assert listed == {name: TABLES[name].column_names for name in listed}
    # No model reads these.
    assert TABLES.keys() - listed == {
        "participant_reads",
        "group_sightings",
        "_account",
        "_version",
        "privacy",
        "erasures",
    }


def test_what_no_view_shows_is_described_where_it_lands(documentation: Documentation) -> None:
    sources = {node["name"]: node for node in documentation.manifest["sources"].values()}
    for table in ("rejected_rows", "sync_runs", "failed_reads"):
        assert all(column["description"] for column in sources[table]["columns"].values())


def find_relations(file: Path) -> set[str]:
    code = file.read_text()
    shared = [str(getattr(activity, name)) for name in re.findall(r"\bactivity\.([A-Z_]+)", code)]
    return set(re.findall(r"\b(?:marts|staging|msgbubbles)\.([a-z_]+)", "\n".join([code, *shared])))


def test_exposures_list_the_relations_that_notebooks_and_report_query(documentation: Documentation) -> None:
    exposures = {node["name"]: node["depends_on"]["nodes"] for node in documentation.manifest["exposures"].values()}
    listed = {name: {node.rpartition(".")[2] for node in nodes} for name, nodes in exposures.items()}
    queried = {
        file.stem: find_relations(file) for file in (ROOT / "notebooks").iterdir() if file.suffix in (".py", ".ipynb")
    }
    queried["report"] = find_relations(ROOT / "pipelines" / "msgbubbles_sync" / "inspect" / "activity.py")
    assert queried.pop("explore") - {"accounts"} == listed.pop("explore")  # it only tests whether that table exists
    assert queried == listed


def test_readme_diagram_is_current(documentation: Documentation) -> None:
    drawn = README.partition("```mermaid\n")[2].partition("```")[0]
    assert drawn == (diagram := entity_diagram(documentation.manifest, documentation.catalog)), f"now it is\n{diagram}"


def test_readme_lists_each_mart_with_its_grain(documentation: Documentation) -> None:
    listed = dict(re.findall(r"^\| `(?:marts|staging)\.(\w+)` \| (.*?) \|", README, flags=re.MULTILINE))
    assert listed.keys() == MODELS["marts"] | {"int_thread_messages"}
    grains = {name: documentation.models[name]["description"].removeprefix("One row per ") for name in listed}
    assert {name: grains[name].startswith(grain) for name, grain in listed.items()} == dict.fromkeys(listed, True)


def test_copy_under_another_name_is_readable(filled: Any, tmp_path: Path) -> None:
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
    # They need targets, messages from us, reactions, and a list of contacts.
    without_rows = {"marts.sla_events", "marts.sla_daily", "marts.delivery_daily", "marts.reactions_daily",
                    "staging.stg_contact_aliases"}  # fmt: skip
    assert {name for name, count in rows.items() if not count} == without_rows


class DataTests:
    """The statements of the data tests, as dbt executes them."""

    def __init__(self, warehouse: Any) -> None:
        self._warehouse = warehouse
        statements: dict[str, str] = {}

        def record(event: Any) -> None:
            if event.info.name == "SQLQuery" and "should_error" in event.data.sql:
                statements[event.data.node_info.unique_id] = event.data.sql

        answer = warehouse.dbt("test", "--exclude-resource-type", "unit_test", on_event=record)
        assert answer.exception is None
        results = [result for result in answer.result if result.node.resource_type == "test"]
        self.outcomes = {result.node.name: str(result.status) for result in results}
        self._tests = [(result.node, statements[result.node.unique_id]) for result in results]

    def run(self) -> dict[str, str]:
        """Return the outcomes on the rows as they are now, without dbt, which takes most of the time."""
        with self._warehouse.open(read_only=True) as connection:
            return {node.name: self._outcome(node, connection.execute(test)) for node, test in self._tests}

    def _outcome(self, node: Any, answer: Any) -> str:
        names = [column[0] for column in answer.description]
        [row] = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        is_error = node.config.severity.lower() == "error"
        return "fail" if is_error and row["should_error"] else "warn" if row["should_warn"] else "pass"


def test_data_tests_pass_on_valid_rows_and_find_each_fault(filled: Any) -> None:
    tests = DataTests(filled)
    assert {name: status for name, status in tests.outcomes.items() if status != "pass"} == {}
    filled.execute(
        "insert into msgbubbles.chats (id, _dlt_load_id) values ('twice', '1'), ('twice', '1')",
        "insert into msgbubbles.chats (id, is_group, from_handle, _dlt_load_id) values ('lonely', true, '+1', '1')",
        "insert into msgbubbles.chats (id, is_group, from_handle, remote_handle, _dlt_load_id)"
        " values ('ours', false, '+9', '+1', '1')",
        "insert into msgbubbles.numbers (handle, _dlt_load_id) values ('+1', '1')",
        "insert into msgbubbles.attachments (id, message_id, _dlt_load_id) values ('a', 'm', '1'), ('b', 'gone', '1')",
        "insert into msgbubbles.messages (id, conversation_id, direction, status, channel, _dlt_load_id) values"
        " ('m', 'g', 'up', 'lost', 'fax', '1'), ('dangling', 'gone', null, null, null, '1')",
        "insert into staging.int_thread_messages by name (select 'gone' as chat_id)",
        "insert into staging.int_thread_messages by name (from staging.int_thread_messages)",
        "insert into staging.int_thread_days by name (select 'gone' as chat_id)",
        "insert into staging.int_thread_days by name (from staging.int_thread_days)",
        "insert into staging.thread_chats from staging.thread_chats",
        "insert into staging.int_thread_measures by name (from staging.int_thread_measures)",
        "update staging.int_thread_measures set waiting_on = 'godot', first_side = 'godot', messages_inbound = 9,"
        " first_day = null, messages_outbound = 2, messages_failed = 9, messages_delivered = 9,"
        " first_message_at = latest_message_at + interval 1 second, longest_gap_seconds = -1",
        "insert into marts.thread_activity_daily by name (from marts.thread_activity_daily)",
        "insert into marts.thread_activity_daily by name (select 'gone' as chat_id)",
        "update marts.thread_activity_daily set day = '2026-01-01', messages_inbound = 9,"
        " first_message_at = latest_message_at + interval 1 second",
        "insert into marts.thread_activity_hours by name (from marts.thread_activity_hours)",
        "insert into marts.thread_activity_hours by name (select 'gone' as chat_id)",
        "update marts.thread_activity_hours set messages_inbound = 9, hour = 24",
        "insert into marts.number_activity_daily by name (from marts.number_activity_daily)",
        "insert into marts.number_activity_daily by name (select null as from_handle)",
        "insert into marts.number_activity_daily by name (select '+9' as from_handle)",
        "update marts.number_activity_daily set messages_inbound = 9, threads_active = 9",
        "insert into marts.group_membership by name (from marts.group_membership)",
        "insert into marts.group_membership by name (select 'gone' as chat_id, 'hearsay' as evidence,"
        " 'hearsay' as confidence, 'hearsay' as end_evidence, false as is_current)",
        "update marts.group_membership set message_count = 9, first_seen_at = last_seen_at + interval 1 second",
        "insert into marts.group_membership by name (from marts.group_membership where handle = '+3')",
        "update marts.group_membership set valid_to = valid_from where handle = '+1'",
        "insert into msgbubbles.stream_coverage values ('messages', null, null, now(), '1')",
        "insert into msgbubbles.participant_lists from msgbubbles.participant_lists",
        "insert into msgbubbles.participant_lists by name (select 'gone' as chat_id, '1' as _dlt_load_id)",
        "insert into msgbubbles.contact_aliases by name (select '+77' as handle, '1' as _dlt_load_id from range(2))",
        "insert into msgbubbles.group_operations by name (select operation_id, 'gone' as chat_id,"
        " 'dissolve' as operation, 'maybe' as outcome, '1' as _dlt_load_id from msgbubbles.group_operations)",
        "insert into msgbubbles.group_member_operations by name (select id, 'gone' as operation_id, 'gone' as chat_id,"
        " 'kicked' as operation, '1' as _dlt_load_id from msgbubbles.group_member_operations)",
        "insert into msgbubbles.chat_titles from msgbubbles.chat_titles",
        "insert into msgbubbles.chat_titles values ('gone', 'T', null, now(), '1')",
        "insert into msgbubbles.webhook_events from msgbubbles.webhook_events",
        "insert into msgbubbles.webhook_events by name (select 'gone' as chat_id, '1' as _dlt_load_id)",
        "insert into staging.int_typing_spells by name (select 'gone' as chat_id)",
        "update staging.int_typing_spells set spell_number = 1, last_typing_at = started_at - interval 1 second",
        "insert into staging.int_typing_spells from staging.int_typing_spells",
        "insert into marts.thread_turns by name (from marts.thread_turns)",
        "insert into marts.thread_turns by name (select 'gone' as chat_id)",
        "update marts.thread_turns set side = 'godot', ended_at = began_at - interval 1 second",
        "insert into marts.thread_sessions by name (from marts.thread_sessions)",
        "insert into marts.thread_sessions by name (select 'gone' as chat_id)",
        "update marts.thread_sessions set initiator = 'godot', ended_by = 'godot', reopened_by = 'godot',"
        " first_response_at = started_at - interval 1 second",
        "update marts.thread_turns set sla_target = 0, answered_at = began_at + interval 1 second,"
        " due_at = began_at + interval 1 hour, business_reply_seconds = 5",
        "insert into staging.int_contact_replies by name (from staging.int_contact_replies)",
        "insert into staging.int_contact_replies by name (select 'gone' as chat_id)",
        "update staging.int_contact_replies set our_answer_rate = 2",
        "insert into marts.delivery_daily by name (select '+9' as from_handle from range(2))",
        "insert into staging.int_business_hours by name (from staging.int_business_hours limit 1)",
        "insert into marts.chat_title_history from marts.chat_title_history",
        "insert into marts.chat_title_history by name (select 'gone' as chat_id)",
        "update marts.chat_title_history set title = 'other', valid_from = first_seen_at + interval 1 second,"
        " valid_to = first_seen_at where chat_id = 'g'",
    )
    faulty = tests.run()
    passed = {name for name, status in faulty.items() if status == "pass"}
    assert {name for name in passed if "not_null" not in name} == {
        # Views, and tables that every run replaces, have unique keys by construction.
        "unique_changed_messages_message_id",
        "unique_contact_handle",
        "unique_combination_of_columns_contact_monthly_handle__month",
        "unique_combination_of_columns_contact_retention_first_month__month",
        "contact_retention_active_within_contacts",
        "relationships_thread_activity_chat_id__chat_id__ref_stg_chats_",
        "thread_activity_typed_unsent_has_typed",
        "relationships_sla_events_chat_id__chat_id__ref_stg_chats_",
        "relationships_reactions_daily_chat_id__chat_id__ref_stg_chats_",
        "unique_combination_of_columns_sla_daily_from_handle__day__channel__metric",
        "unique_combination_of_columns_reactions_daily_chat_id__day__reaction",
        "unique_combination_of_columns_attachments_daily_from_handle__day__direction__kind",
        "unique_combination_of_columns_backlog_daily_from_handle__day",
        "backlog_daily_older_within_all",
        "unique_calendar_day",
        "accepted_values_sla_events_state__met__breached__running__dropped",
        "typing_daily_spells_are_sent_or_unsent",
        "unique_combination_of_columns_typing_daily_chat_id__day",
        "unique_loads_load_id",
        "unique_combination_of_columns_chats_to_build_mart__chat_id",
    }
    assert {"not_null_thread_activity_daily_messages_total", "not_null_group_membership_handle"}.isdisjoint(passed)
    assert {name for name, status in faulty.items() if status == "warn"} == {
        "accepted_values_stg_messages_channel__imessage__sms__whatsapp",
        "accepted_values_stg_messages_direction__inbound__outbound",
        "accepted_values_stg_messages_status__queued__sent__delivered__read__failed__received",
        "chat_title_history_ends_with_current_title",
        "every_message_counts_in_a_thread",
        "relationships_stg_attachments_message_id__message_id__ref_stg_messages_",
        "relationships_stg_group_member_operations_operation_id__operation_id__ref_stg_group_operations_",
        "relationships_delivery_daily_from_handle__handle__ref_stg_numbers_",
        "relationships_number_activity_daily_from_handle__handle__ref_stg_numbers_",
        "relationships_stg_group_member_operations_chat_id__chat_id__ref_stg_chats_",
        "relationships_stg_group_operations_chat_id__chat_id__ref_stg_chats_",
        "relationships_stg_messages_chat_id__chat_id__ref_stg_chats_",
        "relationships_stg_participant_lists_chat_id__chat_id__ref_stg_chats_",
        "relationships_stg_webhook_events_chat_id__chat_id__ref_stg_chats_",
        "relationships_thread_activity_from_handle__handle__ref_stg_numbers_",
        "relationships_thread_activity_remote_handle__handle__ref_contact_",
        "thread_activity_directions_are_total",
    }


def test_empty_file_is_built_and_tested_and_fills_later(warehouse: Any, recorded: Path) -> None:
    # By day, the data tests are executed without dbt.
    answer = warehouse.dbt("build", *([] if IS_NIGHTLY else ["--exclude-resource-type", "test"]))
    built = [node for node in answer.result if node.node.resource_type != "exposure"]
    assert {node.node.name for node in built if node.status not in ("pass", "success")} == set()
    assert sum(node.node.resource_type == "unit_test" for node in built) >= 9
    assert warehouse.marts(MODELS["marts"]) == {name: [] for name in MODELS["marts"]}
    assert warehouse.rows("from staging.int_business_hours") == []
    plan = (recorded / ".msgbubbles" / "company" / "dbt" / "plan.json").read_bytes()
    tests = msgspec.json.decode(plan, type=Plan).tests
    with warehouse.kept_open():
        assert [test.statement for test in tests if warehouse.rows(test.statement)[0]["should_error"]] == []
    assert sum(len(separate(test.statement)) for test in tests) > 200
    warehouse.load("1", chats=[{"id": "a", "is_group": True, "from_handle": "+1"}])
    warehouse.execute(*warehouse.statements.increment)
    assert len(warehouse.mart("thread_activity")) == len(warehouse.mart("group_membership")) == 1
    assert warehouse.mart("chat_title_history") == []
    warehouse.load("2", chat_titles=[{"chat_id": "a", "title": "T"}])
    warehouse.execute(*warehouse.statements.increment)
    assert len(warehouse.mart("chat_title_history")) == 1


def test_mart_with_other_columns_is_refused_silently_and_the_file_closed(
    filled: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.execute("alter table marts.chat_title_history drop column title")
    answer = filled.dbt("run", "--select", "chat_title_history", "thread_activity_hours")
    outcomes = {node.node.name: str(node.status) for node in answer.result if node.node.resource_type == "model"}
    assert outcomes == {"chat_title_history": "error", "thread_activity_hours": "success"}
    assert capfd.readouterr() == ("", "")
    write = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('create table written (x int)')"
    subprocess.run([sys.executable, "-c", write, str(filled.path)], check=True, timeout=60)
    filled.transform("--full-refresh", "--select", "+chat_title_history")
    assert "title" in filled.mart("chat_title_history")[0]
