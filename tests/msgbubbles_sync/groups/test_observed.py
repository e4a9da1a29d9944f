"""The observed state of groups: later evidence counts."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_context, build_destination
from helpers.group_world import OURS, World, row
from msgbubbles.redact import Redactor
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.job import forget_group, list_groups, plan_groups
from msgbubbles_sync.groups.ledger import LEDGER, TIMES, Ledger
from msgbubbles_sync.groups.load import PIPELINE, load_ledger
from msgbubbles_sync.groups.observed import Published, open_ledger, read_published
from msgbubbles_sync.groups.view import fetch_view
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

ANNA, BEN, CARLA = "+14155550111", "ben@example.com", "+14155550113"
HOUR = timedelta(hours=1)


def publish(workspace: Workspace, chat_id: str | None, **chat: object) -> None:
    """Create a published warehouse with one group, as the sync writes it."""
    values = {"from_handle": OURS, "title": None, "_fetched_at": datetime.now(UTC), "deleted_at": None} | chat
    people = values.pop("people", None)
    with duckdb.connect(str(workspace.database)) as database:
        database.execute("CREATE SCHEMA IF NOT EXISTS msgbubbles")
        database.execute(
            "CREATE OR REPLACE TABLE msgbubbles.chats (id TEXT, is_group BOOLEAN, from_handle TEXT, title TEXT, "
            "_fetched_at TIMESTAMPTZ, deleted_at TIMESTAMPTZ)"
        )
        database.execute("INSERT INTO msgbubbles.chats VALUES (?, true, ?, ?, ?, ?)", [chat_id, *values.values()])
        if people is not None:
            database.execute(
                "CREATE OR REPLACE TABLE msgbubbles.participant_lists "
                "(id TEXT, chat_id TEXT, handle TEXT, _fetched_at TIMESTAMPTZ)"
            )
            database.executemany(
                "INSERT INTO msgbubbles.participant_lists VALUES ('', ?, ?, ?)",
                [[chat_id, handle, read_at] for read_at, handle in people],  # type: ignore[attr-defined]
            )


def test_clock_that_is_set_back_repeats_no_operation(world: World) -> None:
    world.apply(row("a", ANNA, BEN, title="First"))
    with world.client() as client, Ledger.open(world.workspace.folder) as ledger:
        fetch_view(ledger, client, "a", str(world.observed("a").chat_id))
    with closing(sqlite3.connect(world.workspace.folder / LEDGER)) as database, database:
        for table, column in TIMES:
            database.execute(f"UPDATE {table} SET {column} = '30' || substr({column}, 3)")
    changed = row("a", ANNA, CARLA, "dora@example.com", title="Second")
    assert world.apply(changed).counts.total() == 4
    assert world.apply(changed).counts.total() == 0


@pytest.mark.parametrize(("hours", "title"), [(-1, "Ours"), (1, "Theirs")])
def test_later_title_counts(world: World, hours: int, title: str) -> None:
    world.apply(row("a", ANNA, BEN, title="Ours"))
    publish(world.workspace, world.observed("a").chat_id, title="Theirs", _fetched_at=datetime.now(UTC) + hours * HOUR)
    assert world.observed("a").title == title


def test_last_participant_list_and_later_operations_count(world: World) -> None:
    world.apply(row("a", ANNA, BEN))
    chat_id = world.observed("a").chat_id
    now = datetime.now(UTC)
    lists = [(now - HOUR, BEN), (now, OURS), (now, "Dora@Example.com"), (now, ANNA)]
    publish(world.workspace, chat_id, people=lists)
    assert world.observed("a").members == {ANNA, "dora@example.com"}
    world.apply(row("a", ANNA, "dora@example.com", CARLA))
    assert world.observed("a").members == {ANNA, "dora@example.com", CARLA}
    publish(world.workspace, chat_id, people=[(datetime.now(UTC), None)])
    assert world.observed("a").members == frozenset()


def test_deleted_group_is_gone_until_it_is_seen_again(world: World) -> None:
    world.apply(row("a", ANNA, BEN))
    chat_id = str(world.observed("a").chat_id)

    def seen() -> None:
        with world.client() as client, Ledger.open(world.workspace.folder) as ledger:
            fetch_view(ledger, client, "a", chat_id)

    seen()
    publish(world.workspace, chat_id, deleted_at=datetime.now(UTC))
    assert world.observed("a").is_gone
    plan = plan_groups(world.context(), [row("a", ANNA, BEN, title="New")])
    assert plan.operations == ()
    assert plan.notes
    seen()
    assert not world.observed("a").is_gone


def test_refused_operation_does_not_change_the_observed_state(world: World) -> None:
    world.apply(row("a", ANNA, BEN))
    world.server.knobs.unreachable = {CARLA}
    world.apply(row("a", ANNA, BEN, CARLA))
    assert world.observed("a").members == {ANNA, BEN}


def test_missing_warehouse_has_no_groups(tmp_path: Path) -> None:
    assert read_published(build_context(Workspace.from_path(tmp_path / "none.duckdb"))) == Published()


def test_ledger_rows_are_loaded_once_and_after_changes(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("DLT_PROJECT_DIR", "DLT_CONFIG_FOLDER", "DLT_DATA_DIR", "DLT_LOCAL_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    workspace = world.workspace
    world.apply(row("a", ANNA, BEN, title="One"))
    # Only the first sync creates the database: one created here would prevent a recovery.
    assert load_ledger(build_destination(workspace), Redactor()) == 0
    assert not workspace.work.exists()
    duckdb.connect(str(workspace.work)).close()
    world.max_attempts = 1
    world.server.knobs.refusal = lambda method, _path: (503, "device_offline") if method == "POST" else None
    world.apply(row("a", ANNA, BEN, CARLA, title="One"))
    assert load_ledger(build_destination(workspace), Redactor()) == 2
    assert workspace.is_pending("transform")
    assert workspace.is_pending("publish")
    workspace.set_done("publish")
    assert load_ledger(build_destination(workspace), Redactor()) == 0
    assert not workspace.is_pending("publish")

    operations = "SELECT key, operation, outcome, error_code, chat_id IS NOT NULL FROM msgbubbles.group_operations"
    members = "SELECT handle, operation FROM msgbubbles.group_member_operations ORDER BY happened_at, handle"
    assert asked(workspace.work, f"{operations} ORDER BY requested_at") == [
        ("a", "create", "succeeded", None, True),
        ("a", "add", "unknown", "device_offline", True),
    ]
    assert asked(workspace.work, members) == [(ANNA, "added"), (BEN, "added")]
    created = "SELECT handles ->> '$[1]' FROM msgbubbles.group_operations WHERE operation = 'create'"
    assert asked(workspace.work, created) == [(BEN,)]

    world.server.knobs.refusal = None
    world.apply(row("a", ANNA, BEN, CARLA, title="One"))
    # The outcome that was unknown, the repeated operation, and the observation.
    assert load_ledger(build_destination(workspace), Redactor()) == 3
    assert asked(workspace.work, f"{operations} ORDER BY requested_at") == [
        ("a", "create", "succeeded", None, True),
        ("a", "add", "failed", None, True),
        ("a", "add", "succeeded", None, True),
    ]
    assert asked(workspace.work, members) == [(ANNA, "added"), (BEN, "added"), (CARLA, "added")]
    types = asked(
        workspace.work,
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'msgbubbles' "
        "AND table_name = 'group_operations' AND column_name IN ('requested_at', 'handles') ORDER BY 1",
    )
    assert types == [("handles", "JSON"), ("requested_at", "TIMESTAMP WITH TIME ZONE")]

    # A kill before the rows are marked: they are loaded again, and stored once.
    with Ledger.open(workspace.folder) as ledger:
        ledger._run("UPDATE operations SET landed_version = 0")
    assert load_ledger(build_destination(workspace), Redactor()) == 3
    assert len(asked(workspace.work, operations)) == 3
    assert len(asked(workspace.work, members)) == 3

    # A forgotten key has no group in the warehouse either.
    world.apply(row("b", ANNA, BEN), row("a", ANNA, BEN, CARLA, title="One"))
    forget_group(world.context(), "b")
    assert load_ledger(build_destination(workspace), Redactor()) == 2
    assert asked(workspace.work, "SELECT key FROM msgbubbles.group_sightings WHERE chat_id = ''") == [("b",)]

    # A lost workspace is restored from the published file.
    known = world.observed("a")
    workspace.work.replace(workspace.database)
    for path in workspace.folder.glob("groups.sqlite*"):
        path.unlink()
    assert list_groups(world.context()) == {"a": known}
    assert load_ledger(build_destination(workspace), Redactor()) == 0


def test_load_continues_after_a_kill_during_normalize(world: World) -> None:
    """Dlt moves the normalized package, then removes the extracted one; here both exist."""
    workspace = world.workspace
    duckdb.connect(str(workspace.work)).close()
    world.apply(row("a", ANNA, BEN))
    assert load_ledger(build_destination(workspace), Redactor()) == 1
    pipeline = build_pipeline(build_destination(workspace), PIPELINE)
    pipeline.extract([{"n": 1}], table_name="any")
    (extracted,) = (workspace.folder / "dlt" / PIPELINE / "normalize" / "extracted").iterdir()
    copy = workspace.folder / "copy"
    shutil.copytree(extracted, copy)
    pipeline.normalize()
    copy.replace(extracted)
    world.apply(row("a", ANNA, BEN, CARLA))
    assert load_ledger(build_destination(workspace), Redactor()) == 1
    assert len(asked(workspace.work, "SELECT 1 FROM msgbubbles.group_operations")) == 2


def asked(database: Path, query: str) -> list[tuple[object, ...]]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_dlt_pipeline_applies_groups_as_its_destination(
    new_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("DLT_PROJECT_DIR", "DLT_CONFIG_FOLDER", "DLT_DATA_DIR", "DLT_LOCAL_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("LOAD__AUTO_ABORT_ON_TERMINAL_ERROR", "true")
    import dlt
    from dlt.pipeline.exceptions import PipelineStepFailed

    from msgbubbles_sync.groups.dlt_destination import groups

    world = new_world()
    reached: dict[str, Any] = {"api_key": world.server.key, "base_url": world.server.url, "requests_per_minute": 0}
    pipeline = dlt.pipeline(
        "teams",
        destination=groups(database=str(world.workspace.database), max_attempts=1, **reached),
        pipelines_dir=str(tmp_path / "dlt"),
    )
    # After a lost answer, dlt repeats the job, and the group exists once.
    answers = iter([0.0, 1.0])
    world.server.knobs.on_request = lambda _account, _number: setattr(
        world.server.knobs, "errors_after_acting", next(answers, 0.0)
    )
    pipeline.run([row("a", ANNA, BEN, title="One"), row("b", ANNA, BEN)], table_name="teams")
    assert [done.operation for done in world.server.operations] == ["create", "create"]
    assert [entry.outcome for entry in world.list_entries()] == ["succeeded", "succeeded"]
    assert world.observed("a").members == {ANNA, BEN}

    for rows, says in (
        ([row("a", ANNA)], r"row 1 \(a\): a group has 2 to 31 addresses, not 1"),
        ([row(f"g{n}", ANNA, BEN) for n in range(51)], "would create 51 groups, and 50 are allowed"),
    ):
        with pytest.raises(PipelineStepFailed, match=says) as raised:
            pipeline.run(rows, table_name="teams")
        assert ANNA not in str(raised.value)
    assert len(world.server.operations) == 2

    world.server.knobs.unreachable = {CARLA}
    with pytest.raises(PipelineStepFailed, match="c: create: the API answered 400 invalid_handle"):
        pipeline.run([row("c", ANNA, CARLA), row("d", ANNA, BEN)], table_name="teams")
    assert world.observed("d").members == {ANNA, BEN}


def test_ledger_moved_to_another_destination_is_loaded_as_a_whole(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "files"))
    world.apply(row("a", ANNA, BEN))
    other = Workspace.from_path(world.workspace.database, "filesystem")
    other.make_folders()
    with Ledger.open(world.workspace.folder) as ledger:
        ledger.set_loaded(*ledger.list_unloaded())
        assert ledger.list_unloaded() == ([], [])
    with pytest.raises(UsageError, match="the ledger of company is in ") as refused, open_ledger(build_context(other)):
        pass
    (move,) = (line.split() for line in str(refused.value).splitlines() if line.startswith("  mv "))
    assert move == ["mv", f"{world.workspace.folder}/groups.sqlite*", f"{other.folder}/"]
    for file in tmp_path.glob(".msgbubbles/company/groups.sqlite*"):
        file.replace(other.folder / file.name)
    with open_ledger(build_context(other)) as ledger:
        assert [entry.key for entry, _ in ledger.list_unloaded()[0]] == ["a"]
        ledger.set_loaded(*ledger.list_unloaded())
        assert ledger.list_unloaded() == ([], [])
