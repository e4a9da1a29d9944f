"""Damaged files of the job are renamed, and restored from the destination."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dlt
import duckdb
import pytest

from helpers.context import build_context, build_destination
from helpers.damage import DAMAGE
from helpers.permissions import give_away, obey_permissions
from msgbubbles.policy import PRESETS
from msgbubbles_sync.cli import chats
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.policy import applied as privacy
from msgbubbles_sync.policy.applied import Record
from msgbubbles_sync.restore import restore, tidy
from msgbubbles_sync.run_log import FILE as RUN_LOG
from msgbubbles_sync.webhooks.redact import CurrentPolicy
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

LOG = b"\xff\x00 of a write-ahead log" * 20


def load(workspace: Workspace, *ids: int) -> list[int]:
    """Load rows with dlt, and return the ids of all loads, which its state has."""

    @dlt.resource(name="rows", write_disposition="append")
    def rows() -> Iterator[dict[str, int]]:
        state = dlt.current.resource_state()
        state["ids"] = [*state.get("ids", []), *ids]
        yield from ({"id": number} for number in ids)

    pipeline = build_pipeline(build_destination(workspace))
    pipeline.run(rows())
    loaded: list[int] = pipeline.state["sources"]["msgbubbles"]["resources"]["rows"]["ids"]
    return loaded


def stored(workspace: Workspace) -> list[int]:
    with build_destination(workspace).open_writer() as connection:
        return [number for (number,) in connection.execute("SELECT id FROM msgbubbles.rows ORDER BY id").fetchall()]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a folder with a published warehouse."""
    workspace = Workspace.from_path(tmp_path_factory.mktemp("loaded") / "company.duckdb")
    workspace.make_folders()
    load(workspace, 1, 2)
    build_destination(workspace).publish()
    tidy(workspace)
    return workspace.database.parent


@pytest.fixture
def workspace(loaded: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(loaded, tmp_path / "here")
    return Workspace.from_path(tmp_path / "here" / "company.duckdb")


def restored(workspace: Workspace) -> list[str]:
    messages: list[str] = []
    restore(build_destination(workspace), messages.append)
    build_destination(workspace).prepare()
    return messages


def test_intact_files_stay_and_loaded_packages_are_removed(workspace: Workspace) -> None:
    assert list((workspace.folder / "dlt").glob("*/load/loaded/*")) == []
    before = {path: path.stat().st_mtime_ns for path in workspace.folder.rglob("*")}
    assert restored(workspace) == []
    assert {path: path.stat().st_mtime_ns for path in workspace.folder.rglob("*")} == before


@pytest.mark.parametrize(
    "name", ["state.json", "schemas/msgbubbles.schema.json", "load/.version", "normalize/.version"]
)
def test_damaged_files_of_dlt_are_restored_from_the_destination(loaded: Path, tmp_path: Path, name: str) -> None:
    before = Workspace.from_path(loaded / "company.duckdb").work.read_bytes()
    for kind, damage in DAMAGE.items():
        shutil.copytree(loaded, tmp_path / kind)
        workspace = Workspace.from_path(tmp_path / kind / "company.duckdb")
        damage(workspace.folder / "dlt" / "msgbubbles" / name)
        [line] = restored(workspace)
        assert "was damaged: moved to msgbubbles.damaged-" in line, kind
        # The same files as after every other kind of damage, so that one load shows what a load makes of them.
        assert not (workspace.folder / "dlt" / "msgbubbles").exists(), kind
        assert workspace.work.read_bytes() == before, kind
    assert load(workspace, 3) == [1, 2, 3]
    assert stored(workspace) == [1, 2, 3]


@pytest.mark.parametrize("name", ["dlt", "dlt/msgbubbles"])
def test_file_with_the_name_of_a_folder_and_broken_links_are_renamed(workspace: Workspace, name: str) -> None:
    shutil.rmtree(workspace.folder / name)
    (workspace.folder / name).touch()
    logs = workspace.dbt_folder / "logs"
    logs.touch()
    for other in ("account.json", "job.lock", "privacy.json", "groups.sqlite"):
        (workspace.folder / other).symlink_to("/nowhere/at/all")
    workspace.make_folders()
    assert not logs.exists(), "dbt would not start"
    assert [path.name for path in workspace.folder.iterdir() if path.is_symlink() and "damaged" not in path.name] == [
        "groups.sqlite"  # it may be on a disk that is not mounted
    ]
    restored(workspace)
    assert load(workspace, 3) == [1, 2, 3]


def test_own_files_without_permissions_are_opened(workspace: Workspace) -> None:
    closed = [workspace.folder / name for name in ("job.lock", "groups.sqlite", "dbt/logs", "dbt", "dlt")]
    closed += [workspace.work, workspace.folder, workspace.folder.parent]
    for path in closed:
        path.parent.mkdir(exist_ok=True)
        path.touch() if path.suffix else path.mkdir(exist_ok=True)
        path.chmod(0)
    workspace.store_version(1)
    workspace.make_folders()
    assert [path for path in closed if path.stat().st_mode & 0o600 != 0o600] == []
    assert workspace.version == 1, "not taken for a new one"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_files_of_another_user_are_renamed(workspace: Workspace) -> None:
    names = ("runs.jsonl", "dbt/built_with", "publish.pending")
    for name in names:
        (workspace.folder / name).parent.mkdir(exist_ok=True)
        (workspace.folder / name).touch()
        give_away(workspace.folder / name)
    (workspace.folder / "dbt" / "logs").mkdir()
    for folder in ("dbt/logs", "dlt"):
        give_away(workspace.folder / folder)
    obey_permissions(workspace.make_folders)
    lines = obey_permissions(lambda: restored(workspace))
    assert [line.partition(" could not be read")[0] for line in lines] == [
        str(workspace.folder / name) for name in names[:2]
    ]
    assert workspace.is_pending("publish")
    assert {path.name.partition("-")[0] for path in workspace.find_damaged()} == {
        "runs.jsonl.damaged", "built_with.damaged", "logs.damaged", "dlt.damaged"
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_folder_of_another_user_hides_no_published_row(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.dbt_folder / "build").mkdir()
    give_away(workspace.folder.parent)
    refusal = f"{workspace.folder} cannot be written: give the user of this job access"

    def run(command: str, *, is_refused: bool = True) -> int:
        with pytest.raises(SystemExit) as ending:
            chats.SCRIPT.app([command, "--database", str(workspace.database)])
        errors = capsys.readouterr().err
        assert refusal in errors if is_refused else not errors
        return int(str(ending.value.code))

    assert [obey_permissions(partial(run, command)) for command in ("sync", "status")] == [1, 0]
    for path in (workspace.folder.parent, *workspace.folder.parent.rglob("*")):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    assert obey_permissions(partial(run, "status", is_refused=False)) == 0
    read_only_disk = OSError(errno.EROFS, os.strerror(errno.EROFS), str(workspace.folder))
    monkeypatch.setattr(Workspace, "make_folders", Mock(side_effect=read_only_disk))
    assert [run(command, is_refused=command == "sync") for command in ("sync", "status")] == [1, 0]


def test_missing_schema_is_restored_from_the_destination(workspace: Workspace) -> None:
    (workspace.folder / "dlt" / "msgbubbles" / "schemas" / "msgbubbles.schema.json").unlink()
    assert len(restored(workspace)) == 1
    assert load(workspace, 3) == [1, 2, 3]


@pytest.mark.parametrize("part", ["*.parquet", "*.json", "*.gz"])
def test_damaged_pending_package_is_read_again(workspace: Workspace, part: str) -> None:
    pipeline = build_pipeline(build_destination(workspace))
    rows: Any = dlt.resource([{"id": 3}], name="rows", write_disposition="append")
    if part == "*.parquet":
        pipeline.extract(rows, loader_file_format="parquet")
        pipeline.normalize()
    else:
        pipeline.extract(rows)
    [found, *_] = [
        path
        for folder in ("normalize/extracted", "load/normalized")
        for path in (workspace.folder / "dlt" / "msgbubbles" / folder).rglob(part)
    ]
    assert restored(workspace) == []
    found.write_bytes(found.read_bytes()[:-20])
    assert len(restored(workspace)) == 1
    assert load(workspace, 3) == [1, 2, 3]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-262_144])


def overwritten(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:12_288] + b"\x00" * (size - 12_288))


@pytest.mark.parametrize("damage", [*DAMAGE, "cut", "overwritten"])
def test_damaged_work_database_is_restored_from_the_published_file(workspace: Workspace, damage: str) -> None:
    harm: dict[str, Callable[[Path], object]] = DAMAGE | {"cut": cut, "overwritten": overwritten}
    harm[damage](workspace.work)
    workspace.work.with_name(f"{workspace.work.name}.wal").write_bytes(LOG)
    [line] = restored(workspace)
    assert f"{workspace.work} was damaged: restored from the published file" in line
    assert stored(workspace) == [1, 2]
    assert load(workspace, 3) == [1, 2, 3], "dlt's state is that of the published file"
    assert {path.name.partition(".damaged-")[0] for path in workspace.find_damaged()} == {
        "company.duckdb",
        "company.duckdb.wal",
    }


def test_work_database_starts_empty_if_the_published_file_is_damaged_too(workspace: Workspace) -> None:
    for path in (workspace.work, workspace.database):
        path.write_bytes(LOG)
    [line] = restored(workspace)
    assert "restored from the API, from the beginning" in line
    with pytest.raises(UsageError, match="it is damaged"):  # it may name people who were erased
        build_context(workspace).check_policy()
    (workspace.folder / RUN_LOG).touch()  # runs without a policy or erased people
    build_context(workspace).check_policy()
    assert load(workspace, 3) == [3]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_policy_is_restored_unless_an_erasure_is_pending(workspace: Workspace, damage: str) -> None:
    record = Record(PRESETS["minimal"], "a key", frozenset({"somebody"}))
    record.save(workspace)
    with build_destination(workspace).open_writer() as connection:
        privacy.store(connection, workspace, "msgbubbles")
    DAMAGE[damage](workspace.folder / "privacy.json")
    workspace.set_pending("erase")
    assert restored(workspace) == []
    workspace.set_done("erase")
    [line] = restored(workspace)
    assert "privacy.json was damaged: restored from the warehouse" in line
    assert Record.load(workspace) == record


@pytest.mark.parametrize("command", [lambda workspace: build_context(workspace).check_policy(), CurrentPolicy])
def test_commands_restore_a_damaged_policy_and_write_no_database(
    workspace: Workspace, command: Callable[[Workspace], object]
) -> None:
    record = Record(erased=frozenset({"somebody"}))
    record.save(workspace)
    log = workspace.work.with_name(f"{workspace.work.name}.wal")
    with build_destination(workspace).open_writer() as connection:
        privacy.store(connection, workspace, "msgbubbles")
        files = {path: path.read_bytes() for path in (workspace.work, log)}
    for path, content in files.items():  # as a killed job leaves them
        path.write_bytes(content)
    (workspace.folder / "privacy.json").write_text("{")
    command(workspace)
    assert Record.load(workspace) == record
    assert {path: path.read_bytes() for path in (workspace.work, log)} == files


def test_work_database_changed_by_a_command_is_not_restored(workspace: Workspace) -> None:
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute("CREATE TABLE msgbubbles.more AS SELECT 1 AS id")
        connection.execute("CHECKPOINT")
    assert restored(workspace) == [], "it differs from when the last run ended, but is not damaged"
