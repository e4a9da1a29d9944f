"""Whose rows a warehouse holds is restored from what it knows, and never to what that contradicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import pytest

from helpers.damage import DAMAGE
from msgbubbles_sync.destinations import destination_of
from msgbubbles_sync.destinations.claims import claim, files_of_accounts, store
from msgbubbles_sync.workspace import CLAIM, MAX_SET_ASIDE, Place, UsageError

damage = pytest.mark.parametrize("damage", DAMAGE)


def claimed(place: Place, said: list[str] | None = None, *, sandbox: bool = False) -> Place:
    place.make_folders()
    claim(place, destination_of(place), sandbox=sandbox, say=(said if said is not None else []).append)
    return place


def publish(place: Place, *, with_claim: bool = True) -> None:
    with destination_of(place).writing() as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS msgbubbles")
        if with_claim:
            store(connection, place, "msgbubbles")
    destination_of(place).publish()


@damage
@pytest.mark.parametrize("sandbox", [True, False])
@pytest.mark.parametrize("account", [None, "north"])
def test_damaged_claim_is_restored_and_never_to_another_account(
    tmp_path: Path, damage: str, account: str | None, sandbox: bool
) -> None:
    place = Place.of(tmp_path / "company.duckdb", account=account)
    publish(claimed(place, sandbox=sandbox))
    path = place.folder / CLAIM
    before = path.read_text()
    DAMAGE[damage](path)
    with pytest.raises(UsageError, match="choose another --database"):
        claimed(place, sandbox=not sandbox)
    said: list[str] = []
    claimed(place, said, sandbox=sandbox)
    assert path.read_text() == before
    [line] = said
    assert f"{path} was damaged: restored" in line
    assert len(place.damaged()) == 1


@pytest.mark.parametrize("lost", ["published", "work", "both"])
def test_claim_without_tables_goes_by_the_other_files(tmp_path: Path, lost: str) -> None:
    for sandbox in (True, False):
        place = Place.of(tmp_path / f"{sandbox}.duckdb")
        publish(claimed(place, sandbox=sandbox), with_claim=lost != "both")
        if sandbox:
            (place.folder / "sandbox.sqlite").touch()
        if lost != "both":
            (place.database if lost == "published" else place.work).unlink()
        (place.folder / CLAIM).write_text("{")
        with pytest.raises(UsageError, match="holds the rows of"):
            claimed(place, sandbox=not sandbox)
        claimed(place, sandbox=sandbox)


def test_published_file_alone_keeps_its_account(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "company.duckdb")
    publish(claimed(place, sandbox=True))
    shutil.rmtree(place.folder.parent)
    with pytest.raises(UsageError, match="holds the rows of the sandbox"):
        claimed(place)
    claimed(place, sandbox=True)


def test_warehouse_of_one_account_takes_a_name_but_no_other_account(tmp_path: Path) -> None:
    whole = claimed(Place.of(tmp_path / "company.duckdb"))
    publish(whole)
    north = Place.of(whole.database, account="north")
    whole.folder.rename(north.folder)
    whole.database.rename(north.database)
    with pytest.raises(UsageError, match="holds the rows of a MsgBubbles account"):
        claimed(north)
    (north.folder / CLAIM).unlink()
    with pytest.raises(UsageError, match="holds the rows of"):
        claimed(north, sandbox=True)
    publish(claimed(north))
    assert files_of_accounts(north) == {"north": north.database}


def test_account_with_a_damaged_claim_is_still_shown(tmp_path: Path) -> None:
    places = [claimed(Place.of(tmp_path / "company.duckdb", account=name)) for name in ("north", "south")]
    other = claimed(Place.of(tmp_path / "company_west.duckdb"))
    for place in (*places, other):
        publish(place)
        (place.folder / CLAIM).write_text("{")
    assert files_of_accounts(places[0]) == {"north": places[0].database, "south": places[1].database}


def test_damaged_files_are_kept_in_small_number(tmp_path: Path) -> None:
    place = claimed(Place.of(tmp_path / "company.duckdb"))
    for number in range(MAX_SET_ASIDE + 2):
        (place.folder / CLAIM).write_text(f"{number}")
        claimed(place)
    assert [path.read_text() for path in sorted(place.damaged())] == ["2", "3", "4"]
    assert json.loads((place.folder / CLAIM).read_text()) == {"account": "a MsgBubbles account"}


def test_claim_in_the_tables_is_not_shown_with_those_of_all(tmp_path: Path) -> None:
    place = claimed(Place.of(tmp_path / "company.duckdb", account="north"))
    publish(place)
    with duckdb.connect(str(place.combined), read_only=True) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("accounts",)]
