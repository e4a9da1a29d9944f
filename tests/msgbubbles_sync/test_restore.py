"""Damaged files of the job are moved aside, and restored from what the destination knows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pytest

from helpers.damage import DAMAGE
from msgbubbles.policy import PRESETS
from msgbubbles_sync.destinations import destination_of
from msgbubbles_sync.job import pipeline_of
from msgbubbles_sync.policy import applied as privacy
from msgbubbles_sync.policy.applied import Record
from msgbubbles_sync.restore import restore, tidy
from msgbubbles_sync.workspace import Place

LOG = b"\xff\x00 of a write-ahead log" * 20


def load(place: Place, *ids: int) -> list[int]:
    """Load rows with dlt, and return which have ever been loaded, as its state knows them."""

    @dlt.resource(name="rows", write_disposition="append")
    def rows() -> Iterator[dict[str, int]]:
        state = dlt.current.resource_state()
        state["ids"] = [*state.get("ids", []), *ids]
        yield from ({"id": one} for one in ids)

    pipeline = pipeline_of(place)
    pipeline.run(rows())
    known: list[int] = pipeline.state["sources"]["msgbubbles"]["resources"]["rows"]["ids"]
    return known


def stored(place: Place) -> list[int]:
    with destination_of(place).writing() as connection:
        return [one for (one,) in connection.execute("SELECT id FROM msgbubbles.rows ORDER BY id").fetchall()]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a warehouse into which dlt has loaded, and that was published."""
    place = Place.of(tmp_path_factory.mktemp("loaded") / "company.duckdb")
    place.make_folders()
    load(place, 1, 2)
    destination_of(place).publish()
    tidy(place)
    return place.database.parent


@pytest.fixture
def place(loaded: Path, tmp_path: Path) -> Place:
    shutil.copytree(loaded, tmp_path / "here")
    return Place.of(tmp_path / "here" / "company.duckdb")


def restored(place: Place) -> list[str]:
    said: list[str] = []
    restore(place, said.append)
    destination_of(place).prepare()
    return said


def test_files_that_are_whole_are_left_alone_and_loaded_packages_go(place: Place) -> None:
    assert list((place.folder / "dlt").glob("*/load/loaded/*")) == []
    before = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")}
    assert restored(place) == []
    assert {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")} == before


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name", ["state.json", "schemas/msgbubbles.schema.json", "load/.version", "normalize/.version"]
)
def test_damaged_files_of_dlt_are_restored_from_the_destination(place: Place, name: str, damage: str) -> None:
    DAMAGE[damage](place.folder / "dlt" / "msgbubbles" / name)
    [line] = restored(place)
    assert "was damaged: moved to msgbubbles.damaged-" in line
    assert load(place, 3) == [1, 2, 3]
    assert stored(place) == [1, 2, 3]


@pytest.mark.parametrize("name", ["dlt", "dlt/msgbubbles"])
def test_file_in_the_place_of_a_folder_is_moved_aside(place: Place, name: str) -> None:
    shutil.rmtree(place.folder / name)
    (place.folder / name).touch()
    place.make_folders()
    restored(place)
    assert load(place, 3) == [1, 2, 3]


def test_lost_schema_of_a_state_that_names_it_is_restored(place: Place) -> None:
    (place.folder / "dlt" / "msgbubbles" / "schemas" / "msgbubbles.schema.json").unlink()
    assert len(restored(place)) == 1
    assert load(place, 3) == [1, 2, 3]


@pytest.mark.parametrize("part", ["*.parquet", "*.json", "*.gz"])
def test_damaged_package_that_waits_is_read_again(place: Place, part: str) -> None:
    pipeline = pipeline_of(place)
    rows: Any = dlt.resource([{"id": 3}], name="rows", write_disposition="append")
    if part == "*.parquet":
        pipeline.extract(rows, loader_file_format="parquet")
        pipeline.normalize()
    else:
        pipeline.extract(rows)
    [found, *_] = [
        path
        for folder in ("normalize/extracted", "load/normalized")
        for path in (place.folder / "dlt" / "msgbubbles" / folder).rglob(part)
    ]
    assert restored(place) == []
    found.write_bytes(found.read_bytes()[:-20])
    assert len(restored(place)) == 1
    assert load(place, 3) == [1, 2, 3]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-262_144])


def overwritten(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:12_288] + b"\x00" * (size - 12_288))


@pytest.mark.parametrize("damage", [*DAMAGE, "cut", "overwritten"])
def test_damaged_work_database_is_restored_from_the_published_file(place: Place, damage: str) -> None:
    harm: dict[str, Callable[[Path], object]] = DAMAGE | {"cut": cut, "overwritten": overwritten}
    harm[damage](place.work)
    place.work.with_name(f"{place.work.name}.wal").write_bytes(LOG)
    [line] = restored(place)
    assert f"{place.work} was damaged: restored from the published file" in line
    assert stored(place) == [1, 2]
    assert load(place, 3) == [1, 2, 3], "what dlt remembers is what the published file has"
    assert {path.name.partition(".damaged-")[0] for path in place.damaged()} == {"company.duckdb", "company.duckdb.wal"}


def test_work_database_begins_anew_where_the_published_file_is_damaged_too(place: Place) -> None:
    for path in (place.work, place.database):
        path.write_bytes(LOG)
    [line] = restored(place)
    assert "restored from the API, from the beginning" in line
    assert load(place, 3) == [3]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_policy_is_restored_unless_an_erasure_is_under_way(place: Place, damage: str) -> None:
    record = Record(PRESETS["minimal"], "a key", frozenset({"somebody"}))
    record.save(place)
    with destination_of(place).writing() as connection:
        privacy.store(connection, place, "msgbubbles")
    DAMAGE[damage](place.folder / "privacy.json")
    place.set_pending("erase")
    assert restored(place) == []
    place.set_done("erase")
    [line] = restored(place)
    assert "privacy.json was damaged: restored from the warehouse" in line
    assert Record.of(place) == record


def test_work_database_that_a_command_has_changed_is_left_alone(place: Place) -> None:
    with duckdb.connect(str(place.work)) as connection:
        connection.execute("CREATE TABLE msgbubbles.more AS SELECT 1 AS id")
        connection.execute("CHECKPOINT")
    assert restored(place) == [], "it looks otherwise than when the last run ended, and is whole"
