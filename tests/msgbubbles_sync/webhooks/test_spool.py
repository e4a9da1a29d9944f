from __future__ import annotations

import fcntl
import os
import shutil
import time
from concurrent.futures import wait
from datetime import UTC, datetime
from pathlib import Path

import pytest

from helpers.full_disk import full_disk
from msgbubbles_sync.webhooks import spool
from msgbubbles_sync.webhooks.spool import (
    Delivery,
    SpoolWriter,
    has_finished_segment,
    list_segments,
    list_unreadable,
    take_finished,
)

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


def delivery(number: int, body: str = "{}") -> Delivery:
    return Delivery(f"evt_{number}", NOW, body)


def found(folder: Path) -> list[str]:
    return [one.event_id for segment in take_finished(folder) for one in segment.deliveries]


def test_answered_deliveries_are_stored_once_in_order(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    outcomes = [writer.put(delivery(number % 900)) for number in range(1000)]
    wait(outcomes, timeout=60)
    assert [one.result() for one in outcomes] == ["stored"] * 900 + ["duplicate"] * 100
    writer.close()
    assert found(tmp_path / "spool") == [f"evt_{number}" for number in range(900)]


def test_many_deliveries_need_few_syncs(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    wait([writer.put(delivery(number)) for number in range(2000)], timeout=60)
    writer.close()
    assert writer.syncs < 1000


def test_segment_in_use_is_left_alone_until_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SEGMENT_SECONDS", 0.5)
    writer = SpoolWriter(tmp_path / "spool")
    writer.put(delivery(1)).result(60)
    assert found(tmp_path / "spool") == []
    until = time.monotonic() + 30
    while not found(tmp_path / "spool") and time.monotonic() < until:
        time.sleep(0.05)
    assert found(tmp_path / "spool") == ["evt_1"]
    writer.put(delivery(2)).result(60)
    writer.close()
    assert found(tmp_path / "spool") == ["evt_1", "evt_2"]


def test_new_segment_is_never_visible_unlocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load would take an unlocked one for finished and remove it."""
    seen: list[bool] = []
    flock = fcntl.flock

    def look_before(file: int, how: int) -> None:
        seen.append(bool(list_segments(tmp_path / "spool")))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", look_before)
    writer = SpoolWriter(tmp_path / "spool")
    writer.put(delivery(1)).result(60)
    assert seen == [False]
    assert found(tmp_path / "spool") == []
    writer.close()


def test_segment_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    unreadable, link = tmp_path / "spool" / "1-1.jsonl", tmp_path / "spool" / "1-2.jsonl"
    unreadable.mkdir(parents=True)
    link.symlink_to("nowhere")
    assert not has_finished_segment(tmp_path / "spool")
    writer = SpoolWriter(tmp_path / "spool")
    writer.put(delivery(1)).result(60)
    writer.close()
    assert has_finished_segment(tmp_path / "spool")
    assert found(tmp_path / "spool") == ["evt_1"]
    assert list_unreadable(tmp_path / "spool") == [unreadable, link]
    assert list_unreadable(unreadable / "what" / "spool") == []
    assert list_unreadable(link) == [link], "it is no folder"


def test_cut_off_line_was_never_answered(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    writer.put(delivery(1)).result(60)
    writer.close()
    (path,) = list_segments(tmp_path / "spool")
    path.write_bytes(path.read_bytes() + b'{"event_id": "evt_2", "rec')
    (segment,) = take_finished(tmp_path / "spool")
    assert [one.event_id for one in segment.deliveries] == ["evt_1"]
    assert segment.malformed == []


def test_line_that_is_not_a_delivery_is_malformed(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    writer.put(delivery(1)).result(60)
    writer.close()
    (path,) = list_segments(tmp_path / "spool")
    path.write_bytes(b"\0\0\0\n" + path.read_bytes() + b'{"event_id": 5}\n')
    (segment,) = take_finished(tmp_path / "spool")
    assert [one.event_id for one in segment.deliveries] == ["evt_1"]
    assert segment.malformed == [b"\0\0\0", b'{"event_id": 5}']


def test_failed_write_is_reported_and_the_next_one_works(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    shutil.rmtree(tmp_path / "spool")
    with pytest.raises(FileNotFoundError):
        writer.put(delivery(1)).result(60)
    assert not writer.is_alive
    (tmp_path / "spool").mkdir()
    # A refused delivery does not count as stored.
    assert writer.put(delivery(1)).result(60) == "stored"
    assert writer.is_alive
    writer.close()
    assert found(tmp_path / "spool") == ["evt_1"]


@pytest.mark.parametrize("room_bytes", [0, 100])
def test_full_disk_leaves_no_empty_segments_or_half_lines(tmp_path: Path, room_bytes: int) -> None:
    folder = tmp_path / "spool"
    writer = SpoolWriter(folder)
    with full_disk(room_bytes=room_bytes):
        for number in range(5):
            with pytest.raises(OSError, match="too large"):
                writer.put(delivery(number, "x" * 200)).result(60)
            assert list(folder.iterdir()) == []
    assert writer.put(delivery(1)).result(60) == "stored"
    # In a segment that has events already.
    with full_disk(room_bytes=300), pytest.raises(OSError, match="too large"):
        writer.put(delivery(2, "x" * 400)).result(60)
    (segment,) = list_segments(folder)
    assert segment.read_bytes().count(b"\n") == 1
    assert segment.read_bytes().endswith(b"\n")
    assert writer.put(delivery(2)).result(60) == "stored"
    writer.close()
    assert found(folder) == ["evt_1", "evt_2"]


def test_number_of_remembered_ids_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "RECENT_EVENTS", 10)
    writer = SpoolWriter(tmp_path / "spool")
    for number in range(12):
        writer.put(delivery(number)).result(60)
    assert writer.put(delivery(11)).result(60) == "duplicate"
    assert writer.put(delivery(0)).result(60) == "stored"
    writer.close()


def test_delivery_is_answered_only_after_its_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    writer.put(delivery(1)).result(60)

    def refuse(_file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output"):
            writer.put(delivery(2)).result(60)
    # After a failed sync, the next delivery goes to another file.
    assert writer.put(delivery(2)).result(60) == "stored"
    assert len(list_segments(tmp_path / "spool")) == 2
    writer.close()
