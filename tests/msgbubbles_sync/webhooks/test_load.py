"""Load the spool into a DuckDB file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_context, build_destination
from helpers.hooks import load_all, workspace_in
from msgbubbles.policy import PRESETS
from msgbubbles.tables import CHATS
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.policy.applied import CONFIRMED
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.tables import WEBHOOK_EVENTS, define_columns
from msgbubbles_sync.webhooks import load
from msgbubbles_sync.webhooks.load import count_dead_letters
from msgbubbles_sync.webhooks.spool import Delivery, Segment, list_segments, spool_folder

pytestmark = pytest.mark.slow


def line(number: int, received_at: str = "2026-11-23T10:00:00Z", **more: Any) -> str:
    body = json.dumps({"type": "conversation.typing", "conversation_id": "c", "typing": True, "n": number} | more)
    return json.dumps({"event_id": f"evt_{number}", "received_at": received_at, "body": body}) + "\n"


def test_repeated_event_is_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_in(tmp_path)
    spool = spool_folder(workspace)
    spool.mkdir(parents=True)
    (spool / "1-1.jsonl").write_text(line(1) + "nonsense\n" + line(2) + line(1, n=5) + line(3)[:30])

    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".jsonl":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            load_all(workspace)
    assert len(list_segments(spool)) == 1, "nothing is removed that is not committed"
    (spool / "2-1.jsonl").write_text(line(2, "2026-11-23T11:00:00Z") + line(3))
    with build_destination(workspace).stay_open():  # no table of messages yet, so dlt opens the file
        result = load_all(workspace)
    assert (result.deliveries, result.malformed, count_dead_letters(workspace)) == (3, 1, 1)
    (spool / "3-1.jsonl").write_text(line(1, "2026-11-23T12:00:00Z", n=9))
    assert load_all(workspace).deliveries == 1
    (spool / "4-1.jsonl").write_text(line(4, conversation_id="..") + line(5, conversation_id=5) + line(6, a="conv_1"))
    result = load_all(workspace)
    assert (result.deliveries, result.malformed, result.impossible_chat_ids) == (3, 0, 2)
    assert result.as_dict()["impossible_chat_ids"] == 2
    assert "Impossible chat id: 2 events, stored without a chat." in str(result)
    with duckdb.connect(str(workspace.work)) as database:
        database.execute("SET TimeZone = 'UTC'")
        found = database.execute(
            "SELECT event_id, strftime(received_at, '%H'), payload ->> 'n' FROM msgbubbles.webhook_events "
            "ORDER BY event_id"
        ).fetchall()
        chats = database.execute("SELECT event_id, chat_id FROM msgbubbles.webhook_events ORDER BY event_id").fetchall()
    assert found[:3] == [("evt_1", "10", "1"), ("evt_2", "10", "2"), ("evt_3", "10", "3")]
    assert chats == [("evt_1", "c"), ("evt_2", "c"), ("evt_3", "c"), ("evt_4", None), ("evt_5", None), ("evt_6", "c")]
    assert list_segments(spool) == []
    assert {path.stem for path in workspace.folder.glob("*.pending")} >= {"repair", "transform", "publish"}
    assert load_all(workspace).deliveries == 0


def test_event_that_the_destination_refuses_becomes_a_dead_letter(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path)
    spool = spool_folder(workspace)
    spool.mkdir(parents=True)
    (spool / "1-1.jsonl").write_text(line(1, handle="+14155550123"))
    load_all(workspace)
    with duckdb.connect(str(workspace.work)) as database:
        columns = f"{define_columns(WEBHOOK_EVENTS)}, _dlt_load_id VARCHAR, CHECK (handle IS NOT NULL)"
        database.execute("USE msgbubbles; ALTER TABLE webhook_events RENAME TO before")
        database.execute(f"CREATE TABLE webhook_events ({columns}); INSERT INTO webhook_events BY NAME FROM before")
    (spool / "2-1.jsonl").write_text(line(2, handle="nul \0") + line(3) + line(4, handle="+14155550123"))
    result = load_all(workspace)
    assert (result.deliveries, result.malformed, count_dead_letters(workspace)) == (2, 1, 1)
    assert list_segments(spool) == []
    with duckdb.connect(str(workspace.work)) as database:
        found = database.execute("SELECT event_id, handle FROM msgbubbles.webhook_events ORDER BY event_id").fetchall()
    assert found == [("evt_1", "+14155550123"), ("evt_2", "nul \ufffd"), ("evt_4", "+14155550123")]


def test_segments_are_batched_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [
        Segment(Path(str(number)), [Delivery(f"evt_{number}", datetime.now(UTC), "{}")], []) for number in range(500)
    ]
    assert [len(batch) for batch in load._batch_segments(small)] == [500]
    monkeypatch.setattr(load, "MAX_BATCH_EVENTS", 200)
    assert [len(batch) for batch in load._batch_segments(small)] == [200, 200, 100]
    monkeypatch.setattr(load, "MAX_BATCH_CHARACTERS", 10 * len(small[0].deliveries[0].body))
    assert max(len(batch) for batch in load._batch_segments(small)) == 10


NINE = "2026-11-23T09:00:00.000Z"
CHAT = {
    "id": "d", "from_handle": "+14155550100", "remote_handle": "+14155550123", "is_group": False, "title": "a secret",
    "created_at": NINE,
}  # fmt: skip
SECRETS = {"text": "a secret", "sender": "+14155550123", "metadata": {"note": "a secret"}, "to": "ann@example.com"}


@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")
@pytest.mark.parametrize("preset", [*PRESETS, "expired"])
def test_new_messages_and_chats_follow_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", "of a test, and long enough to be a key")
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "full" if preset == "expired" else preset)
    if preset == "expired":
        monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__TEXT_DAYS", "1")
        monkeypatch.setenv("SOURCES__MSGBUBBLES__START_DATE", "2026-01-01")
    workspace = workspace_in(tmp_path)
    write_privately(workspace.folder / CONFIRMED, json.dumps(datetime.now(UTC).isoformat()))
    assert build_context(workspace).redactor.policy == load_settings(None).policy
    spool = spool_folder(workspace)
    spool.mkdir(parents=True)
    with build_destination(workspace).open_writer() as database:
        columns = f"{define_columns(CHATS)}, _dlt_load_id VARCHAR"  # dlt adds no column with a constraint
        database.execute(f"CREATE SCHEMA msgbubbles; CREATE TABLE msgbubbles.chats ({columns})")
        database.execute("INSERT INTO msgbubbles.chats (id, _fetched_at) VALUES ('c', now())")
    at = "2026-01-02T09:00:00.000Z" if preset == "expired" else NINE
    message = SECRETS | {
        "id": "m1",
        "conversation_id": "c",
        "created_at": at,
        "direction": "inbound",
        "new": "a secret",
    }
    bodies: list[dict[str, Any]] = [
        {"type": "message.received", "conversation_id": None, "message": message | more}
        for more in (
            {},
            {"id": "m2", "conversation_id": "d", "chat": CHAT},
            {"id": "m3", "created_at": "2025-01-01", "conversation_id": "e"},
            {"id": 4},
        )
    ]
    (spool / "1-1.jsonl").write_text("".join(line(number, **body) for number, body in enumerate(bodies)))
    result = load_all(workspace)
    # Messages from before `start_date`, and their chats, are left to the next read.
    assert (result.deliveries, result.messages_changed, result.unreadable_message_ids) == (4, 0, 1)
    assert result.messages_new == (2 if preset == "expired" else 3)
    assert "0 changed. Unreadable message: 1 event, stored without one." in str(result)
    with duckdb.connect(str(workspace.work)) as database:
        database.execute("SET TimeZone = 'UTC'")
        rows = database.execute(
            "SELECT text, conversation_id, from_event_at::VARCHAR FROM msgbubbles.messages WHERE id = 'm1'"
        ).fetchall()
        chats = database.execute(
            "SELECT id, from_handle, is_group, last_message_at::VARCHAR, from_event_at::VARCHAR FROM msgbubbles.chats "
            "WHERE id <> 'c' ORDER BY id"
        ).fetchall()
        stored = repr(rows) + repr(database.execute("FROM msgbubbles.messages").fetchall())
        stored += repr(database.execute("FROM msgbubbles.chats").fetchall())
        if preset in ("analytics", "minimal"):
            stored += repr(database.execute("FROM msgbubbles.webhook_events").fetchall())
    text = {"full": "a secret", "analytics": "········"}.get(preset)
    assert rows == [(text, "c", "2026-11-23 10:00:00+00")]
    came_at = "2026-11-23 10:00:00+00"
    assert chats[0] == ("d", chats[0][1], False, f"{at[:10]} 09:00:00+00", came_at)
    assert (chats[0][1] == CHAT["from_handle"]) == (preset != "minimal")
    assert chats[1:] == ([] if preset == "expired" else [("e", None, None, "2025-01-01 00:00:00+00", came_at)])
    assert ("'a secret', datetime" in stored) == (preset in ("full", "expired"))
    hidden = ("a secret", "4155550123", "ann@") if preset in ("analytics", "minimal") else ()
    assert [value for value in hidden if value in stored] == []
