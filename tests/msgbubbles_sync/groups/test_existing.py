"""Keys for groups that exist: by title, and for a whole table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import duckdb
import pytest

from helpers.group_world import OURS, World, row
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.existing import ExistingGroup, import_group, import_groups, parse_existing_groups
from msgbubbles_sync.groups.ledger import Observation

ANNA, BEN = "+14155550111", "ben@example.com"


def publish(world: World) -> None:
    """Create a published warehouse with the groups of the account."""
    with duckdb.connect(str(world.workspace.database)) as database:
        database.execute("CREATE SCHEMA msgbubbles")
        database.execute(
            "CREATE TABLE msgbubbles.chats (id TEXT, is_group BOOLEAN, from_handle TEXT, title TEXT, "
            "_fetched_at TIMESTAMPTZ, deleted_at TIMESTAMPTZ)"
        )
        for chat in world.server.truth().chats:
            values = [chat["id"], chat["is_group"], chat["from_handle"], chat["title"], datetime.now(UTC)]
            database.execute("INSERT INTO msgbubbles.chats VALUES (?, ?, ?, ?, ?, NULL)", values)


def create(world: World, title: str, number: str = OURS) -> str:
    with world.client() as client:
        return client.create_group(number, [ANNA, BEN], "Hello", title).id


@pytest.fixture
def chat_ids(world: World) -> dict[str, str]:
    ids = {title: create(world, title) for title in ("North  team", "renamed", "second")}
    ids |= {"ours": create(world, "twice"), "sales": create(world, "twice", "+14155550101")}
    publish(world)
    world.server.account.rename(ids["renamed"], "Theirs", datetime.now(UTC))
    return ids


def test_group_is_imported_by_its_title(world: World, chat_ids: dict[str, str]) -> None:
    def import_by_title(key: str, title: str, number: str | None = None) -> str:
        with world.client() as client:
            return import_group(world.context(), client, ExistingGroup(key, None, title, number)).chat_id

    assert import_by_title("north", "North team") == chat_ids["North  team"]
    assert world.observed("north").members == {ANNA, BEN}
    with pytest.raises(UsageError, match="no group without a key has this title"):
        import_by_title("other", "North team")
    with pytest.raises(UsageError, match=r"2 groups have this title\. Pass the id of one: "):
        import_by_title("twice", "twice")
    assert import_by_title("sales", "twice", "+1 415 555 0101") == chat_ids["sales"]
    assert import_by_title("twice", "twice") == chat_ids["ours"], "the other one has a key now"
    with pytest.raises(UsageError, match="had this title at the last sync, and has another one now"):
        import_by_title("renamed", "renamed")


def test_table_is_imported_but_for_the_groups_that_cannot_be(world: World, chat_ids: dict[str, str]) -> None:
    world.apply(row("new", ANNA, BEN))
    rows: list[dict[str, Any]] = [
        {"Key": "north", "Title": "North team", "addresses": "ignored"},
        {"Key": "second", "chat id": chat_ids["second"], "Title": "Another title"},
        {"Key": "missing", "Title": "nobody"},
        {"Key": "gone", "chat id": "00000000-0000-4000-8000-000000000000"},
        {"Key": "new", "Title": "has a group already"},
    ]
    asked = len(world.server.requests)
    with world.client() as client:
        results = import_groups(world.context(), client, parse_existing_groups(rows))
    imported = {key: result.chat_id for key, result in results.items() if isinstance(result, Observation)}
    assert imported == {"north": chat_ids["North  team"], "second": chat_ids["second"]}
    assert results.keys() - imported.keys() == {"missing", "gone"}
    assert [request.split()[0] for request in world.requests(asked)] == ["GET"] * 3
    with world.client() as client:
        again = import_groups(world.context(), client, parse_existing_groups(rows))
    assert again.keys() == {"missing", "gone"}


def test_faults_of_a_table_are_listed_before_anything_is_imported() -> None:
    rows = [{"title": "a"}, {"key": "b"}, {"key": "c", "title": "c"}, {"key": "c", "chat_id": "1"}, {"key": "d\u202e"}]
    with pytest.raises(UsageError) as refused:
        parse_existing_groups(rows)
    assert str(refused.value).splitlines() == [
        "the table cannot be imported:",
        "  row 1: key is missing",
        "  row 2 (b): it needs a chat_id or a title",
        "  row 5 (d\\u202e): key has invisible characters; type it again",
        "  rows 3, 4 (c) have the same key; each group needs its own",
    ]
    with pytest.raises(UsageError, match="it has no rows"):
        parse_existing_groups([])
