"""What is shown of builds: the latest, whole; what is held stays; what was replaced stays for those who read it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

from warehouse import lake_files, spark
from warehouse.lake_files import LakeFiles
from warehouse.place import Place

MARTS = ("contact", "thread_activity")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))
    return tmp_path / "lake"


@pytest.fixture
def build(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LakeFiles]:
    """Makes marts that all hold one number, as Spark and dbt would; or fails in the middle."""
    place = Place.of(tmp_path / "company.duckdb", "filesystem")
    place.make_folders()
    destination = LakeFiles(place)
    destination.prepare()
    assert files.is_dir()
    current = [0]

    def show(_session: Any, _landed: Path, build: Path, _prefix: str) -> None:
        for folder in (*(build / mart for mart in MARTS), spark.staging(build) / "thread_messages"):
            folder.mkdir(parents=True)
            duckdb.sql(f"COPY (SELECT {current[0]} AS n) TO '{folder}/part-0.parquet' (FORMAT parquet)")

    def made(number: int, *, fails: bool = False) -> LakeFiles:
        current[0] = number
        with suppress(ZeroDivisionError), destination.building():
            assert 1 / (not fails)
        return destination

    monkeypatch.setattr(spark, "session", lambda *_: nullcontext())
    monkeypatch.setattr(spark, "show", show)
    return made


def shown(files: Path) -> dict[str, int]:
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as connection:
        names = connection.execute("SELECT view_name FROM duckdb_views() WHERE schema_name = 'marts'").fetchall()
        return {name: connection.execute(f"SELECT n FROM marts.{name}").fetchall()[0][0] for (name,) in names}


def test_readers_see_the_latest_build_that_came_to_its_end(files: Path, build: Callable[..., LakeFiles]) -> None:
    build(1).publish()
    assert shown(files) == {"contact": 1, "thread_activity": 1}
    destination = build(2)
    assert shown(files) == {"contact": 1, "thread_activity": 1}, "not before it is published"
    build(3, fails=True)
    destination.publish()
    assert shown(files) == {"contact": 2, "thread_activity": 2}
    assert not list(files.rglob("thread_messages")), "what nobody reads is gone"


def test_a_mart_that_is_held_stays_as_it_was(files: Path, build: Callable[..., LakeFiles]) -> None:
    build(1).publish(["contact"])
    assert shown(files) == {"thread_activity": 1}, "there was none before"
    build(2).publish()
    build(3).publish(["contact"])
    build(3).publish(["contact"])
    assert shown(files) == {"contact": 2, "thread_activity": 3}
    build(4).publish()
    assert shown(files) == {"contact": 4, "thread_activity": 4}


def test_what_was_replaced_stays_for_an_hour(
    files: Path, build: Callable[..., LakeFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(1).publish()
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as reader:
        build(2).publish()
        build(3).publish()
        assert reader.execute("SELECT n FROM marts.contact").fetchall() == [(1,)]
    assert len(list((files / "marts").iterdir())) == 3
    (files / "marts" / "of a job that was killed").mkdir()
    monkeypatch.setattr(lake_files, "KEPT_SECONDS", 0)
    build(4).publish()
    [left] = (files / "marts").iterdir()
    assert json.loads((files / ".msgbubbles" / "_.json").read_text())["marts"] == dict.fromkeys(MARTS, left.name)
    assert shown(files) == {"contact": 4, "thread_activity": 4}


def test_files_are_for_those_whom_the_folder_is_for(files: Path, build: Callable[..., LakeFiles]) -> None:
    before = os.umask(0o077)
    try:
        build(1).publish()
        assert (files / "warehouse.duckdb").stat().st_mode & 0o777 == 0o400
        files.chmod(0o750)
        destination = build(2)
        destination.prepare()
        (files / "warehouse.duckdb").unlink()
        build(3).publish()
        assert (files / "warehouse.duckdb").stat().st_mode & 0o777 == 0o440
        part = max((files / "marts").glob("*/contact/*.parquet"))
        assert part.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
