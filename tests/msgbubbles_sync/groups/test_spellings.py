"""Handles and titles that an API shows with other spellings than it was given."""

from __future__ import annotations

import json

import pytest

from helpers.group_world import World, groups_in, outcomes, people_in, row
from msgbubbles_sync.groups.ledger import Ledger
from msgbubbles_sync.groups.view import fetch_view

ANNA, BEN, CARLA, DORA = "+14155550111", "ben@example.com", "+14155550113", "dora@example.com"


def rewrite(world: World, *pairs: tuple[str, str]) -> None:
    """Replace texts in every answer."""

    def changed(_path: str, body: bytes) -> bytes:
        for asked, shown in pairs:
            body = body.replace(json.dumps(asked, ensure_ascii=False).encode(), json.dumps(shown).encode())
        return body

    world.server.knobs.transform_body = changed


def observe_group(world: World, key: str) -> None:
    """Observe a group, as a sync does."""
    with world.client() as client, Ledger.open(world.workspace.folder) as ledger:
        fetch_view(ledger, client, key, str(world.observed(key).chat_id))


def test_members_with_another_spelling_are_not_removed(world: World) -> None:
    spellings = [
        ("+541123456789", "+5491123456789"),
        ("+5493512345678", "+543512345678"),
        ("+525512345678", "+5215512345678"),
        ("+5511987654321", "+551187654321"),
        ("+2290161234567", "+22961234567"),
        ("dora@example.com", "Dora@Example.COM"),
        ("+14155550113", "+1 (415) 555-0113"),
        ("+14155550114", "4155550114"),
        ("+14155550115", "tel:+14155550115"),
    ]
    rewrite(world, *spellings)
    wanted = row("a", *(asked for asked, _ in spellings))
    world.apply(wanted)
    observe_group(world, "a")
    assert outcomes(world.apply(wanted)) == {}
    assert people_in(world, "a") == {asked for asked, _ in spellings}


def test_unknown_spelling_is_learned_from_the_answer(world: World) -> None:
    rewrite(world, (DORA, "+14155550999"), (CARLA, "urn:carla"))
    world.apply(row("a", ANNA, BEN, DORA))
    world.apply(row("a", ANNA, BEN, CARLA, DORA))
    observe_group(world, "a")
    assert outcomes(world.apply(row("a", ANNA, BEN, CARLA, DORA))) == {}
    assert world.observed("a").members == {ANNA, BEN, CARLA, DORA}


def test_removal_is_repeated_with_the_spelling_shown(world: World) -> None:
    world.apply(row("a", ANNA, BEN, "+541123456789"))
    chat_id, at = str(world.observed("a").chat_id), world.list_entries()[0].requested_at
    world.server.account.remove_participant(chat_id, "+541123456789", at)
    world.server.account.add_participant(chat_id, "+5491123456789", at)
    assert outcomes(world.apply(row("a", ANNA, BEN))) == {("remove", "succeeded"): 1}
    assert people_in(world, "a") == {ANNA, BEN}


def test_own_number_is_sent_in_the_accounts_spelling(world: World) -> None:
    world.server.account.add_number("+5491123456789", "Buenos Aires")
    assert outcomes(world.apply(row("a", ANNA, BEN, number="+541123456789"))) == {("create", "succeeded"): 1}
    assert groups_in(world)[0]["from_handle"] == "+5491123456789"


def test_title_stored_in_another_form_needs_no_rename(world: World) -> None:
    titles = [
        ("Cafe\u0301", "Caf\u00e9"),
        ("R&D", "R&amp;D"),
        ("A  B\tC", "A B C"),
        (" North\u200b", "North"),
        ("Team \u2764\ufe0f", "Team \u2764"),
    ]
    keys = [f"key{number}" for number in range(len(titles))]
    world.apply(*(row(key, ANNA, BEN, title="Before") for key in keys))
    for key, (_, shown) in zip(keys, titles, strict=True):
        world.server.account.rename(str(world.observed(key).chat_id), shown, world.list_entries()[0].requested_at)
        observe_group(world, key)
    wanted = [row(key, ANNA, BEN, title=asked) for key, (asked, _) in zip(keys, titles, strict=True)]
    assert outcomes(world.apply(*wanted)) == {}
    assert outcomes(world.apply({**wanted[0], "title": "CAF\u00c9"})) == {("rename", "succeeded"): 1}


@pytest.mark.parametrize("answers", ["shown", "empty", "as asked"])
def test_rename_that_the_network_rewrites_is_not_repeated(world: World, answers: str) -> None:
    """The network stores 10 capital letters only."""
    world.apply(row("a", ANNA, BEN))
    wanted = row("a", ANNA, BEN, title="North and South")
    rewrite(world, ("North and South", "NORTH AND "))
    renamed = world.server.knobs.transform_body
    assert renamed is not None
    if answers == "empty":
        world.server.knobs.write_answer = (200, b"{}")
    if answers == "as asked":
        world.server.knobs.transform_body = None
    renames = []
    for _ in range(4):
        renames.append(outcomes(world.apply(wanted)).get(("rename", "succeeded"), 0))
        world.server.knobs.transform_body = renamed
        observe_group(world, "a")
        if answers == "as asked":
            world.server.knobs.transform_body = None
    # If the answer repeats the request, only the second attempt shows that the network stores something else.
    assert renames == ([1, 1, 0, 0] if answers == "as asked" else [1, 0, 0, 0])
    world.server.knobs.transform_body = None
    assert outcomes(world.apply({**wanted, "title": "Other"})) == {("rename", "succeeded"): 1}
    # The title that the network showed can itself be requested.
    for renames_now in (1, 0):
        counts = outcomes(world.apply({**wanted, "title": "NORTH AND "}))
        assert counts.get(("rename", "succeeded"), 0) == renames_now
