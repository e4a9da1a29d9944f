"""Small files that a warehouse cannot do without, on a disk that refuses."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from full_disk import full_disk
from hooks import place_in
from warehouse.place import CLAIM, UsageError, written_privately


def test_a_full_disk_leaves_no_empty_account_file(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with full_disk(), pytest.raises(OSError, match="too large"):
        place.claim_for("a MsgBubbles account")
    assert [path for path in place.folder.rglob("*") if path.is_file()] == []
    place.claim_for("a MsgBubbles account")
    written_at = (place.folder / CLAIM).stat().st_mtime_ns
    with full_disk():
        # What is as it should be is not written, so a full disk does not end a run that changes nothing.
        place.claim_for("a MsgBubbles account")
        with pytest.raises(UsageError, match="holds the rows"):
            place.claim_for("the sandbox")
    assert (place.folder / CLAIM).stat().st_mtime_ns == written_at
    assert json.loads((place.folder / CLAIM).read_text()) == {"account": "a MsgBubbles account"}


def test_a_refused_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = written_privately(tmp_path / "one.json", "before")
    with full_disk(room_bytes=3), pytest.raises(OSError, match="too large"):
        written_privately(path, "after")
    assert path.read_text() == "before"
    assert written_privately(path, b"after") == path
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("after", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_and_a_device_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    written_privately(link, "content")
    assert link.is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "content"
    written_privately(Path(os.devnull), "content")
    assert not Path(os.devnull).is_file()
