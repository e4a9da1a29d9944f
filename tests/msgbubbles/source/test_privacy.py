"""A privacy policy in a simulated world: what is loaded, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import cycle
from typing import Any
from zlib import crc32

import pytest

from helpers.canary import handles_in, quote_everywhere, spellings, texts_in
from helpers.world import OURS, World, build_settings
from msgbubbles.policy import FULL, PRESETS, Policy, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles_sync.sandbox import Knobs, NewMessage

NAMES = Pseudonymizer("of a test, and long enough to be a key")
ANN, BEN = "+14155550111", "ben@example.com"
GROUP = "00000000-0000-4000-8000-000000000009"
MINIMAL, ANALYTICS = PRESETS["minimal"], PRESETS["analytics"]


def redactor(policy: Policy, **more: Any) -> Redactor:
    return Redactor(policy, NAMES, **more)


@contextmanager
def build_world(*people: str, policy: Redactor | None = None, knobs: Knobs | None = None) -> Iterator[World]:
    """Build chats with Ann and Ben, and a group of them. People who are not in `people` do not exist."""
    world = World(knobs or Knobs(), build_settings(read_participants=True), page_size=5)
    world.redactor = policy or Redactor()
    at = world.at()
    for number, person in enumerate((ANN, BEN)):
        if person in people:
            chat = world.account.add_chat(OURS, person, at, chat_id=f"00000000-0000-4000-8000-00000000000{number}")
            write(world, chat, [person], at, range(12))
    group = world.account.add_chat(
        OURS, "group:1", at, is_group=True, title="Team", participants=people, chat_id=GROUP
    )  # fmt: skip
    write(world, group, [one for one in (ANN, BEN, OURS) if one in (*people, OURS)], at, range(20, 41))
    world.pass_time(60_000)
    yield world
    world.account.close()


@pytest.mark.slow
@pytest.mark.parametrize("feed", [True, False])
@pytest.mark.parametrize(
    ("policy", "is_erased"),
    [(FULL, True), (MINIMAL, True), (ANALYTICS, False), (MINIMAL, False)],
    ids=["full, erased", "minimal, erased", "analytics", "minimal"],
)
def test_no_handle_is_loaded_into_other_columns_or_names(policy: Policy, is_erased: bool, feed: bool) -> None:
    every = [*spellings(ANN), *spellings("carla@example.com")]
    # Fields that identify a chat, or the people in it.
    own = frozenset({"conversation_id", "from_handle", "handle", "sender"})

    def quoted(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        direct = {"remote_handle"} if not row.get("is_group") else set()
        # Seeded by its key, so that a row is the same each time it is read.
        number = crc32(str(row.get("id")).encode()) % len(every)
        written = cycle([*every[number:], *every[:number]])
        return quote_everywhere(row, written, own | ({"id"} | direct if kind == "chats" else set()))

    people = (ANN, "carla@example.com")
    erased = frozenset({NAMES.erased_handle(one) for one in people}) if is_erased else frozenset[str]()
    knobs = Knobs(feed=feed, transform_row=quoted, extra_fields={"of " + ANN: "carla@example.com"})
    with build_world(BEN, policy=redactor(policy, erased=erased), knobs=knobs) as world:
        for _ in range(10):
            run = world.sync()
            names = [name for progress in run.streams.values() for name in progress.new_fields]
            assert handles_in("\n".join(names), *people) == []
            world.pass_time(3_600_000)
        loaded = {table: list(rows.values()) for table, rows in world.store.tables.items()}
        assert len(loaded["messages"]) > 20
        found = {(table, name) for table, some in loaded.items() for row in some for name, value in row.items()
                 if handles_in("\n".join(texts_in(value)), *people)}  # fmt: skip
        assert found == set()
        assert handles_in("\n".join(texts_in(world.store.states)), *people) == []
        if policy == FULL:
            assert {row["effect"] for row in loaded["messages"]} >= {"[erased]", "tel:[erased]"}


@pytest.mark.parametrize("policy", [FULL, MINIMAL], ids=["full", "minimal"])
def test_names_of_unknown_fields_are_recorded_without_handles(policy: Policy) -> None:
    knobs = Knobs(extra_fields={**dict.fromkeys(spellings(ANN), 1), "mood": 2})
    with build_world(BEN, policy=redactor(policy), knobs=knobs) as world:
        names = world.sync().get_progress("chats").new_fields
    assert handles_in("\n".join(names), ANN) == []
    assert ("mood" in names) == (policy == FULL)


def write(world: World, chat: str, people: list[str], at: datetime, seconds: range) -> None:
    """Write one message a second, from Ann, Ben and us in turn, if they exist; its id is the second."""
    turns = (ANN, BEN, OURS) if chat == GROUP else people
    messages = [
        NewMessage(chat, "outbound" if person == OURS else "inbound", f"{person} at {second}",
                   at + timedelta(seconds=second), "received", sender=person, id=f"{chat[:-4]}{second:04d}{chat[-1]}")
        for second in seconds
        if (person := turns[second % len(turns)]) in people
    ]  # fmt: skip
    world.account.add_messages(messages)


def rows(world: World, table: str) -> list[dict[str, Any]]:
    found = [
        {name: one for name, one in row.items() if name != "_fetched_at"} for row in world.store.tables[table].values()
    ]
    return sorted(found, key=repr)


@pytest.mark.parametrize("feed", [True, False])
def test_policy_changes_nothing_but_personal_data(feed: bool) -> None:
    tables = ("chats", "messages", "numbers", "participant_lists", "participant_reads", "chat_titles")
    with build_world(ANN, BEN, knobs=Knobs(feed=feed)) as whole:
        whole.sync()
        expected = {table: rows(whole, table) for table in tables}
    for table in tables:
        for row in expected[table]:
            row |= {name: NAMES.handle(row[name]) for name in ("remote_handle", "sender_handle") if row.get(name)}
            row["sender_handle"] = OURS if row.get("sender_handle") == NAMES.handle(OURS) else row.get("sender_handle")
            if row.get("title"):
                row["title"] = NAMES.title(row["title"])
            if row.get("text"):
                row["text"] = "·" * len(row["text"])
            if row.get("label"):
                row["label"] = NAMES.title(row["label"])
    with build_world(ANN, BEN, policy=redactor(ANALYTICS), knobs=Knobs(feed=feed)) as world:
        world.sync()
        for table in ("chats", "messages", "numbers", "chat_titles"):
            for row in expected[table]:
                if table != "messages":
                    row.pop("sender_handle")
            assert rows(world, table) == sorted(expected[table], key=repr), table
        assert {row["handle"] for row in rows(world, "participant_lists")} == {NAMES.handle(ANN), NAMES.handle(BEN)}
        everything = repr(world.store.tables) + repr(world.store.states)
        assert not [word for word in (ANN, BEN, "Team", " at 2") if word in everything]
        # Unchanged rows are not loaded again; changed ones are.
        again = world.sync()
        assert {table: changes.loaded for table, changes in again.changes.items() if changes.loaded} == {}
        world.account.rename(GROUP, "Other", world.at())
        world.pass_time(25 * 3_600_000)
        assert world.sync().changes["chats"].changed_keys == {GROUP}
        assert NAMES.title("Other") in repr(world.store.tables["chat_titles"])


@pytest.mark.slow
@pytest.mark.parametrize("feed", [True, False])
@pytest.mark.parametrize("policy", [FULL, MINIMAL], ids=["full", "minimal"])
def test_erased_people_are_not_loaded_and_nothing_else_is_missing(policy: Policy, feed: bool) -> None:
    tables = ("chats", "messages", "participant_lists", "chat_titles")
    with build_world(BEN, policy=redactor(policy), knobs=Knobs(feed=feed)) as without:
        without.sync()
        expected = {table: rows(without, table) for table in tables}
    erased = redactor(policy, erased=frozenset({NAMES.erased_handle(ANN)}))
    with build_world(ANN, BEN, policy=erased, knobs=Knobs(feed=feed)) as world:
        for _ in range(10):
            world.sync()
            found = {table: rows(world, table) for table in tables}
            for one in (found, expected):
                for row in one["participant_lists"]:
                    row["id"] = row["id"].split("|")[-1]
            assert found == expected
            world.pass_time(3_600_000)
        # In a new chat of a new number of ours.
        new = world.account.add_chat(OURS, "+1 415 555 0111", world.at(), chat_id=GROUP[:-1] + "7")
        write(world, new, [ANN, OURS], world.at(), range(12))
        world.sync()
        assert {table: len(rows(world, table)) for table in tables} == {table: len(expected[table]) for table in tables}
        # Messages of others that mention them.
        world.account.add_message(NewMessage(GROUP, "outbound", f"ask {ANN}!", world.at(), "sent", sender=OURS))
        world.pass_time(60_000)
        assert world.sync().changes["messages"].new == 1
        assert ("ask [erased]!" in repr(world.store.tables)) == (policy == FULL)
        assert ANN not in repr(world.store.tables)
        assert NAMES.handle(ANN) not in repr(world.store.tables)
