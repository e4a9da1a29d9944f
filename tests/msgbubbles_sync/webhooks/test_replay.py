"""Dead letters and stored events that are loaded again."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_context
from helpers.hooks import load_all, workspace_in
from msgbubbles_sync.webhooks import replay
from msgbubbles_sync.webhooks.load import count_dead_letters, dead_letter_folder
from msgbubbles_sync.webhooks.spool import list_segments, spool_folder
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

EVENTS = "SELECT event_id, chat_id, strftime(received_at, '%H') FROM msgbubbles.webhook_events ORDER BY event_id"


def line(number: int, body: str | None = None) -> str:
    event = {"type": "conversation.typing", "conversation_id": "c", "typing": True}
    at = f"2026-11-23T1{number}:00:00Z"
    return json.dumps({"event_id": f"evt_{number}", "received_at": at, "body": body or json.dumps(event)}) + "\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a workspace with two events, whose chats an older release did not read, and two dead letters."""
    workspace = workspace_in(tmp_path)
    spool = spool_folder(workspace)
    spool.mkdir(parents=True)
    (spool / "1-1.jsonl").write_text(line(1) + line(2) + "nonsense\n" + line(3, "not JSON"))
    assert load_all(workspace).deliveries == 2
    assert count_dead_letters(workspace) == 2
    execute(workspace, "UPDATE msgbubbles.webhook_events SET chat_id = NULL")
    return workspace


def execute(workspace: Workspace, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(workspace.work)) as database:
        database.execute("SET TimeZone = 'UTC'")
        return database.execute(sql).fetchall()


def correct_dead_letters(workspace: Workspace) -> None:
    """Change a dead letter, as if this release could read it."""
    (path,) = dead_letter_folder(workspace).glob("*.jsonl")
    path.write_text(path.read_text().replace("not JSON", '{\\"conversation_id\\": \\"d\\"}'))


def test_dead_letters_and_later_events_are_read_again(workspace: Workspace) -> None:
    correct_dead_letters(workspace)
    result = replay.replay(build_context(workspace), datetime(2026, 11, 23, 12, tzinfo=UTC))
    assert execute(workspace, EVENTS) == [("evt_1", None, "11"), ("evt_2", "c", "12"), ("evt_3", "d", "13")]
    assert (
        result.dead_letters_replayed,
        result.dead_letters_unreadable,
        result.events_replayed,
        result.events_without_payload,
    ) == (1, 1, 1, 0)
    assert result.deliveries == 2
    assert str(result).startswith("1 dead letter and 1 event read again: 2 deliveries, ")
    assert [path.read_text() for path in dead_letter_folder(workspace).iterdir()] == ["nonsense\n"]
    assert list_segments(spool_folder(workspace)) == []
    assert workspace.is_pending("publish")


def test_replay_without_a_time_reads_dead_letters_only(workspace: Workspace) -> None:
    (dead_letter_folder(workspace) / "refused.1.jsonl").write_text('{"id": "evt_4", "conversation_id": "c"}\n')
    result = replay.replay(build_context(workspace), None)
    assert (result.dead_letters_replayed, result.events_replayed, result.deliveries) == (2, 0, 1)
    assert (result.malformed, count_dead_letters(workspace)) == (1, 2), "one is still not JSON"
    assert [row[:2] for row in execute(workspace, EVENTS)] == [("evt_1", None), ("evt_2", None), ("evt_4", "c")]


def test_event_without_payload_is_counted_and_stays(workspace: Workspace) -> None:
    execute(workspace, "UPDATE msgbubbles.webhook_events SET payload = NULL WHERE event_id = 'evt_1'")
    result = replay.replay(build_context(workspace), datetime(2026, 1, 1, tzinfo=UTC))
    assert (result.events_replayed, result.events_without_payload) == (1, 1)
    assert [row[:2] for row in execute(workspace, EVENTS)] == [("evt_1", None), ("evt_2", "c")]


def test_killed_replay_loses_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    correct_dead_letters(workspace)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(replay, "load_segments", killed)
        with pytest.raises(KeyboardInterrupt):
            replay.replay(build_context(workspace), datetime(2026, 1, 1, tzinfo=UTC))
    assert load_all(workspace).deliveries == 3
    assert [row[0] for row in execute(workspace, EVENTS)] == ["evt_1", "evt_2", "evt_3"]
    assert count_dead_letters(workspace) == 1
