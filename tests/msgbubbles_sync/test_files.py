"""Small files that a warehouse cannot do without, on a disk that refuses."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from helpers.full_disk import full_disk
from msgbubbles_sync.files import write_privately


def test_full_disk_leaves_no_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "account.json"
    with full_disk(), pytest.raises(OSError, match="too large"):
        write_privately(path, '{"account": "north"}')
    assert list(tmp_path.iterdir()) == []
    write_privately(path, '{"account": "north"}')
    written_at_ns = path.stat().st_mtime_ns
    with full_disk():
        # What is as it should be is not written, so a full disk does not end a run that changes nothing.
        assert write_privately(path, '{"account": "north"}') == path
    assert (path.read_text(), path.stat().st_mtime_ns) == ('{"account": "north"}', written_at_ns)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_privately(tmp_path / "one.json", "before")
    with full_disk(room_bytes=3), pytest.raises(OSError, match="too large"):
        write_privately(path, "after")
    assert path.read_text() == "before"
    assert write_privately(path, b"after") == path
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("after", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_links_and_devices_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    write_privately(link, "content")
    assert link.is_symlink()
    link.unlink()
    link.symlink_to("/nowhere/at/all")
    assert write_privately(link, "content").read_text() == "content"
    assert (tmp_path / "there" / "file").read_text() == "content"
    write_privately(Path(os.devnull), "content")
    assert not Path(os.devnull).is_file()
