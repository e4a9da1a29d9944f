"""Checks of the receiver and its events."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from msgspec import structs

from helpers.context import build_context
from helpers.hooks import receiving, typing, workspace_in
from msgbubbles.settings import DEFAULTS, RefreshRule
from msgbubbles_sync.webhooks import health
from msgbubbles_sync.webhooks.health import ReceiverState, with_refresh
from msgbubbles_sync.webhooks.heartbeat import Beat, find_stopped
from msgbubbles_sync.webhooks.spool import spool_folder, webhooks_folder
from msgbubbles_sync.workspace import Workspace

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
Ago = timedelta


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_in(tmp_path)


def published(workspace: Workspace, messages: dict[str, timedelta], events: dict[str, timedelta]) -> None:
    """Create a warehouse with the newest message of each direction and the last event of each type, by age."""
    with duckdb.connect(str(workspace.database)) as database:
        database.execute("CREATE SCHEMA IF NOT EXISTS msgbubbles")
        database.execute("CREATE OR REPLACE TABLE msgbubbles.messages (direction TEXT, cursor_at TIMESTAMPTZ)")
        database.execute("CREATE OR REPLACE TABLE msgbubbles.webhook_events (event_type TEXT, received_at TIMESTAMPTZ)")
        for direction, ago in messages.items():
            database.execute("INSERT INTO msgbubbles.messages VALUES (?, ?)", [direction, NOW - ago])
        for kind, ago in events.items():
            database.execute("INSERT INTO msgbubbles.webhook_events VALUES (?, ?)", [kind, NOW - ago])


def beating(workspace: Workspace, *, beat: timedelta, since: timedelta, last: timedelta | None) -> Path:
    folder = webhooks_folder(workspace) / "receivers" / "8080-elsewhere"
    folder.mkdir(parents=True, exist_ok=True)
    one = Beat(1, NOW - beat, NOW - since, None if last is None else NOW - last)
    (folder / "heartbeat.json").write_bytes(msgspec.json.encode(one))
    return folder


BOTH = {"inbound": Ago(minutes=10), "outbound": Ago(hours=1)}
COME = {"message.received": Ago(minutes=10), "message.delivered": Ago(hours=1)}


def well(workspace: Workspace) -> None:
    published(workspace, BOTH, COME)
    beating(workspace, beat=Ago(seconds=5), since=Ago(hours=3), last=Ago(minutes=10))


def test_events_are_reliable_while_they_arrive(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    well(workspace)
    assert health.are_reliable(build_context(workspace), NOW)
    assert {one.state for one in health.check(build_context(workspace), NOW)} == {"ok"}
    assert with_refresh(build_context(workspace)) == DEFAULTS, "only where it is configured"
    monkeypatch.setenv("WEBHOOKS__REFRESH_MESSAGES", '[{"every_hours": 24}]')
    monkeypatch.setattr(health, "datetime", type("Clock", (datetime,), {"now": staticmethod(lambda _zone: NOW)}))
    slower = structs.replace(DEFAULTS, refresh_messages=(RefreshRule(24),))
    assert with_refresh(build_context(workspace)) == slower


@pytest.mark.parametrize(
    "spoil",
    [
        lambda workspace: beating(workspace, beat=Ago(minutes=2), since=Ago(hours=3), last=Ago(minutes=10)),
        lambda workspace: beating(workspace, beat=Ago(seconds=5), since=Ago(minutes=50), last=Ago(minutes=10)),
        lambda workspace: shutil.rmtree(webhooks_folder(workspace) / "receivers"),
        lambda workspace: published(workspace, BOTH, COME | {"message.received": Ago(hours=1)}),
        lambda workspace: published(workspace, BOTH, {"message.received": Ago(minutes=10)}),
        lambda workspace: published(workspace, BOTH, {"conversation.typing": Ago(0)}),
        lambda workspace: published(workspace, {}, {}),
        lambda workspace: workspace.database.unlink(),
        lambda workspace: workspace.database.write_text("no database"),
    ],
)
def test_events_are_unreliable_after_a_fault(workspace: Workspace, spoil: Callable[[Workspace], object]) -> None:
    well(workspace)
    spoil(workspace)
    assert not health.are_reliable(build_context(workspace), NOW)


def test_check_reports_when_events_stop(workspace: Workspace) -> None:
    published(workspace, BOTH, {name: Ago(days=2) for name in COME})
    beating(workspace, beat=Ago(seconds=5), since=Ago(days=3), last=Ago(days=2))
    found = {one.name: one for one in health.check(build_context(workspace), NOW)}
    assert found["webhook events"].state == "failed"
    assert found["webhook events"].what == "the last arrived 48 hours ago, but there are newer messages"
    # An event that is not loaded yet counts.
    beating(workspace, beat=Ago(seconds=5), since=Ago(days=3), last=Ago(minutes=1))
    found = {one.name: one for one in health.check(build_context(workspace), NOW)}
    assert found["webhook events"].state == "info"
    # Without new messages, no event is missing.
    published(workspace, {name: Ago(days=9) for name in BOTH}, {name: Ago(days=9) for name in COME})
    beating(workspace, beat=Ago(seconds=5), since=Ago(days=10), last=Ago(days=9))
    assert {one.state for one in health.check(build_context(workspace), NOW)} == {"ok"}


def test_check_reports_a_stopped_receiver_and_a_waiting_spool(workspace: Workspace) -> None:
    assert list(health.check(build_context(workspace), NOW)) == []
    well(workspace)
    beating(workspace, beat=Ago(hours=3), since=Ago(days=3), last=Ago(minutes=10))
    segment = spool_folder(workspace) / "1-1.jsonl"
    segment.parent.mkdir()
    segment.write_text("")
    for hours, state in ((0.5, "ok"), (1.5, "failed")):
        at = (NOW - Ago(hours=hours)).timestamp()
        os.utime(segment, (at, at))
        found = {one.name: one for one in health.check(build_context(workspace), NOW)}
        assert found["webhook spool"].state == state
    segment.unlink()
    segment.symlink_to("nowhere")
    [spool] = [one for one in health.check(build_context(workspace), NOW) if one.name == "webhook spool"]
    assert (spool.state, spool.what) == ("failed", f"1 file cannot be read: {segment}")
    assert found["webhook receiver"].what == "8080-elsewhere is not running; the last heartbeat was 3 hours ago"
    assert all(one.fix for one in found.values() if one.state == "failed")


def test_receiver_state_counts_refusals_by_reason_across_a_restart(workspace: Workspace) -> None:
    never = ReceiverState.read(workspace)
    assert str(never) == "Receiver: never ran on this workspace; 0 files waiting, 0 dead letters."
    assert never.as_dict() == {"running": False, "waiting_files": 0, "dead_letters": 0}
    for event in (1, 2):
        with receiving(workspace) as served:
            assert served.post(typing(event)).status_code == 204
            assert served.post(typing(event), key=b"another").status_code == 401
            assert served.http.post(served.url, content=b"{}").status_code == 401
            served.receiver.heartbeat.beat()
            state = ReceiverState.read(workspace)
    stopped = ReceiverState.read(workspace)
    assert re.match(r"Receiver: not running since \S+Z \(0-\S+\); last event \S+Z;", str(stopped)), "it is seen at once"
    values: Any = state.as_dict()
    assert values["refused"] == {"forged": 2, "unsigned": 2}
    assert (values["running"], values["waiting_files"], stopped.as_dict()["running"]) == (True, 2, False)
    assert values["since"] <= values["last_event_at"] <= values["last_refused_at"]
    assert re.fullmatch(
        r"Receiver: running; last event \S+Z; refused since \S+Z: 2 forged, 2 unsigned, last \S+Z; "
        "2 files waiting, 0 dead letters.",
        str(state),
    )


def test_each_of_two_receivers_is_seen_to_stop(workspace: Workspace) -> None:
    (webhooks_folder(workspace)).mkdir()
    (webhooks_folder(workspace) / "receiver.json").write_text('{"pid": 1}')  # of an earlier release
    with receiving(workspace) as first:
        with receiving(workspace, port=1) as second:
            for served, event in ((first, 1), (second, 2)):
                assert served.post(typing(event)).status_code == 204
                assert served.post(typing(event), key=b"another").status_code == 401
                served.receiver.heartbeat.beat()
            both = ReceiverState.read(workspace).as_dict()
        state = ReceiverState.read(workspace)
        [check] = [one for one in health.check(build_context(workspace)) if one.name == "webhook receiver"]
        assert not health.are_reliable(build_context(workspace))
    assert (both["running"], both["stopped"], both["refused"]) == (True, [], {"forged": 2})
    name = f"1-{socket.gethostname()}"
    assert state.as_dict() == both | {"running": False, "stopped": [name], "waiting_files": 2}
    assert f"({name})" in str(state)
    assert (check.state, name in check.what) == ("failed", True)
    # One that starts on its port, perhaps in another container, goes on from its record.
    folder = webhooks_folder(workspace) / "receivers"
    (folder / name).rename(folder / "1-earlier-container")
    with receiving(workspace, port=1), receiving(workspace):
        again = ReceiverState.read(workspace)
    assert again.as_dict() == both | {"since": again.as_dict()["since"], "waiting_files": 2}
    assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == ["0", "1"]


def test_receiver_that_another_has_replaced_is_forgotten_after_a_week(workspace: Workspace) -> None:
    well(workspace)
    receivers = webhooks_folder(workspace) / "receivers"
    for days, count in ((6, 1), (8, 0)):
        folder = beating(workspace, beat=Ago(days=days), since=Ago(days=20), last=None)
        shutil.move(folder, receivers / "8079-elsewhere")
        well(workspace)
        assert len(find_stopped(webhooks_folder(workspace), NOW)) == count
        shutil.rmtree(receivers / "8079-elsewhere")
