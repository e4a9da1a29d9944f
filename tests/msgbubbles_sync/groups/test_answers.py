"""Answers to writes as an API may give them: without a body, late, redundant, or with other spellings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.group_world import OURS, World, cut_next_write, outcomes, row
from msgbubbles.errors import AuthenticationError, NoIdError, NotFoundError
from msgbubbles_sync.groups.existing import ExistingGroup, import_group
from msgbubbles_sync.groups.ledger import Ledger
from msgbubbles_sync.groups.view import fetch_view

ANNA, BEN, CARLA, DORA = "+14155550111", "ben@example.com", "+14155550113", "dora@example.com"
BODIES = [
    (204, b""),
    (200, b"{}"),
    (200, b'{"data": null}'),
    (200, b'{"data": {"ok": true}}'),
    (200, b'{"data": {"id": "participant-1", "handle": "x@example.com"}}'),
    (202, b"<p>Done</p>"),
    (200, b'{"data": [1]}'),
]


def groups_in(world: World) -> list[dict[str, Any]]:
    return [chat for chat in world.server.truth().chats if chat["is_group"]]


def people_in(world: World, key: str) -> set[str]:
    return set(world.server.account.participants(str(world.observed(key).chat_id)))


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


# -- statuses


@pytest.mark.parametrize("body", [b"<html>not here</html>", b'{"error": {"code": "not_found"}}'])
def test_server_that_is_not_the_api_ends_apply(world: World, body: bytes) -> None:
    world.server.knobs.answer = lambda *_: (404, {}, body)
    with pytest.raises(NotFoundError, match="is /v1 missing from base_url"):
        world.apply(row("a", ANNA, BEN))


@pytest.mark.parametrize(("status", "body"), BODIES)
def test_change_succeeds_by_status_whatever_the_body(world: World, status: int, body: bytes) -> None:
    world.apply(row("a", ANNA, BEN))
    chat_id = world.observed("a").chat_id
    world.server.knobs.write_answer = (status, body)
    asked = len(world.server.requests)
    applied = world.apply(row("a", BEN, CARLA, title="New"))
    assert outcomes(applied) == {("rename", "succeeded"): 1, ("add", "succeeded"): 1, ("remove", "succeeded"): 1}
    # One request each, and one for the title, which no answer shows.
    assert [one.split()[0] for one in world.requests(asked)] == ["GET", "PATCH", "GET", "POST", "DELETE"]
    assert {entry.chat_id for entry in world.entries()} == {chat_id}
    assert outcomes(world.apply(row("a", BEN, CARLA, title="New"))) == {}


@pytest.mark.parametrize("wrapped", ["chat", "chat_id", "bare", "conversation_id"])
def test_id_of_new_group_is_read_from_any_place(world: World, wrapped: str) -> None:
    def changed(path: str, body: bytes) -> bytes:
        if not path.endswith("/chats"):
            return body
        chat = json.loads(body)["data"]
        shapes = {
            "chat": {"data": {"chat": chat}},
            "chat_id": {"data": {"chat_id": chat["id"]}},
            "bare": chat | {"request_id": "req_1"},
            "conversation_id": {"data": {"id": "message-1", "conversation_id": chat["id"]}},
        }
        return json.dumps(shapes[wrapped]).encode()

    world.server.knobs.transform_body = changed
    assert outcomes(world.apply(row("a", ANNA, BEN))) == {("create", "succeeded"): 1}
    assert [chat["id"] for chat in groups_in(world)] == [world.observed("a").chat_id]
    assert len(world.server.requests) == 2


@pytest.mark.parametrize("answer", BODIES[:3])
def test_group_created_without_id_is_identified(world: World, answer: tuple[int, bytes]) -> None:
    world.apply(row("other", ANNA, BEN))
    world.server.knobs.write_answer = answer
    with world.client() as client, pytest.raises(NoIdError, match="does not say which one"):
        client.create_group(OURS, [ANNA, DORA], "Hello")
    with world.client() as client, pytest.raises(NoIdError):
        client.send_message("Hi", to=ANNA, from_handle=OURS)
    assert outcomes(world.apply(row("a", ANNA, CARLA), row("b", ANNA, BEN))) == {("create", "succeeded"): 2}
    assert people_in(world, "a") == {ANNA, CARLA}
    assert len({world.observed(key).chat_id for key in ("other", "a", "b")}) == 3
    assert outcomes(world.apply(row("a", ANNA, CARLA), row("b", ANNA, BEN))) == {}


def test_unidentified_group_waits_for_import(world: World) -> None:
    world.server.knobs.participants_on_detail = False
    world.server.knobs.write_answer = (201, b"{}")
    for _ in range(2):
        applied = world.apply(row("a", ANNA, BEN))
        assert outcomes(applied) in ({("create", "unknown"): 1}, {})
        assert "groups.py import KEY CHAT_ID" in applied.failures[0].why
    world.server.knobs.write_answer = None
    with world.client() as client:
        import_group(world.context(), client, ExistingGroup("a", groups_in(world)[0]["id"]))
    assert outcomes(world.apply(row("a", ANNA, BEN, title="New"))) == {("rename", "succeeded"): 1}
    assert len(groups_in(world)) == 1


# -- refusals after an attempt without an answer


def refuse_after_cut(world: World, status: int, code: str) -> None:
    """Perform the next write, but answer it with 502; refuse all later writes."""
    knobs = world.server.knobs
    writes: list[str] = []

    def refusal(method: str, _path: str) -> tuple[int, str] | None:
        knobs.errors_after_acting = float(method != "GET" and not writes)
        if method != "GET":
            writes.append(method)
        return (status, code) if len(writes) > 1 and method != "GET" else None

    knobs.refusal = refusal


@pytest.mark.parametrize(
    "refused", [(409, "conflict"), (400, "invalid_request"), (404, "not_found"), (403, "forbidden")]
)
@pytest.mark.parametrize("shown", [True, False])
def test_refusal_after_lost_answer_creates_no_second_group(world: World, refused: tuple[int, str], shown: bool) -> None:
    world.server.knobs.participants_on_detail = shown
    refuse_after_cut(world, *refused)
    applied = world.apply(row("a", ANNA, BEN, title="One"))
    assert outcomes(applied) == {("create", "succeeded"): 1}
    assert [one.what for one in applied.remarks] == ["found among the chats of the account"]
    world.server.knobs.refusal = None
    assert outcomes(world.apply(row("a", ANNA, BEN, title="Two"))) == {("rename", "succeeded"): 1}
    assert [chat["title"] for chat in groups_in(world)] == ["Two"]


def test_creation_missing_from_list_is_unknown_then_found(world: World) -> None:
    hidden = [True]
    knobs = world.server.knobs
    refuse_after_cut(world, 409, "conflict")
    knobs.transform_body = lambda path, body: b'{"data": []}' if hidden and path.endswith("/chats") else body
    assert outcomes(world.apply(row("a", ANNA, BEN, title="One"))) == {("create", "unknown"): 1}
    hidden.clear()
    # Every repetition is refused, and the title has changed since.
    applied = world.apply(row("a", ANNA, BEN))
    assert (applied.resolved, outcomes(applied)) == (1, {})
    assert [chat["id"] for chat in groups_in(world)] == [world.observed("a").chat_id]


def test_creation_that_does_not_exist_is_failed_and_repeated(world: World) -> None:
    world.max_attempts = 2
    answers = iter([(502, "send_failed"), (400, "invalid_request"), (400, "invalid_request")])
    world.server.knobs.refusal = lambda method, _path: next(answers, None) if method == "POST" else None
    assert outcomes(world.apply(row("a", ANNA, BEN))) == {("create", "unknown"): 1}
    applied = world.apply(row("a", ANNA, BEN))
    # Searched and not found, so planned again.
    assert (applied.resolved, outcomes(applied)) == (1, {("create", "succeeded"): 1})
    assert [entry.outcome for entry in world.entries()] == ["failed", "succeeded"]
    assert len(groups_in(world)) == 1


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("wanted", [row("a", ANNA, BEN, DORA, title="New"), row("a", ANNA, BEN, CARLA, DORA)])
def test_change_refused_after_lost_answer_is_checked(world: World, wanted: dict[str, object], shown: bool) -> None:
    world.server.knobs.participants_on_detail = shown
    world.apply(row("a", ANNA, BEN, DORA))
    refuse_after_cut(world, 400, "invalid_request")
    applied = world.apply(wanted)
    if shown or wanted["title"]:
        assert [outcome for _, outcome in applied.counts] == ["succeeded"]
    else:
        assert outcomes(applied) == {("add", "unknown"): 1}
    world.server.knobs.refusal = None
    assert outcomes(world.apply(wanted)) == {}
    assert people_in(world, "a") == set(wanted["addresses"])  # type: ignore[call-overload]


# -- redundant operations


@pytest.mark.parametrize(("shown", "code"), [(True, "conflict"), (False, "already_a_participant")])
def test_adding_a_member_succeeds_with_a_remark(world: World, shown: bool, code: str) -> None:
    world.apply(row("a", ANNA, BEN))
    world.server.knobs.participants_on_detail = shown
    world.server.account.add_participant(str(world.observed("a").chat_id), CARLA, world.entries()[0].requested_at)
    world.server.knobs.refusal = lambda _method, path: (409, code) if path.endswith("/participants") else None
    applied = world.apply(row("a", ANNA, BEN, CARLA))
    assert outcomes(applied) == {("add", "succeeded"): 1}
    assert [one.what for one in applied.remarks] == ["the person was already in the group"]
    assert applied.failures == []


@pytest.mark.parametrize(("status", "shown"), [(404, False), (409, True), (409, False)])
def test_removing_a_former_member_succeeds_with_a_remark(world: World, status: int, shown: bool) -> None:
    world.apply(row("a", ANNA, BEN, CARLA))
    world.server.knobs.participants_on_detail = shown
    world.server.account.remove_participant(str(world.observed("a").chat_id), CARLA, world.entries()[0].requested_at)
    world.server.knobs.refusal = lambda method, _path: (status, "conflict") if method == "DELETE" else None
    applied = world.apply(row("a", ANNA, BEN))
    assert outcomes(applied) == {("remove", "succeeded"): 1}
    assert [one.what for one in applied.remarks] == ["the person was no longer in the group"]


def test_conflict_about_unseen_member_removes_nobody(world: World) -> None:
    """The API has the person under an unknown handle, which may be the one to remove."""
    world.apply(row("a", ANNA, BEN, CARLA))
    world.server.knobs.refusal = lambda _method, path: (409, "conflict") if path.endswith("/participants") else None
    applied = world.apply(row("a", ANNA, BEN, DORA))
    assert outcomes(applied) == {("add", "failed"): 1}
    assert applied.not_sent == 1
    assert people_in(world, "a") == {ANNA, BEN, CARLA}


# -- other spellings


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
    chat_id, at = str(world.observed("a").chat_id), world.entries()[0].requested_at
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
        world.server.account.rename(str(world.observed(key).chat_id), shown, world.entries()[0].requested_at)
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


# -- isolation


@pytest.mark.parametrize(
    ("status", "reads"), [(400, True), (401, True), (401, False), (403, True), (403, False), (409, False), (500, True)]
)
@pytest.mark.parametrize("numbers", [True, False])
def test_failing_group_does_not_stop_the_others(world: World, status: int, reads: bool, numbers: bool) -> None:
    wanted = [row(key, ANNA, BEN) for key in "abc"]
    world.apply(*wanted)
    chat_id = str(world.observed("b").chat_id)
    world.server.knobs.refusal = lambda method, path: (
        (status, "refused")
        if (chat_id in path and (reads or method != "GET")) or (path.endswith("/numbers") and not numbers)
        else None
    )
    for _ in range(2):
        wanted = [{**one, "title": f"{one['title']}x"} for one in wanted]
        applied = world.apply(*wanted)
        assert applied.halt is None
        assert applied.counts["rename", "succeeded"] == 2
        assert {failure.key for failure in applied.failures} == {"b"}


def test_closed_groups_are_not_taken_for_a_closed_account(world: World) -> None:
    wanted = [row(key, ANNA, BEN) for key in "abcde"]
    world.apply(*wanted)
    closed = [str(world.observed(key).chat_id) for key in "ab"]
    world.server.knobs.refusal = lambda _method, path: (
        (403, "forbidden") if any(chat_id in path for chat_id in closed) else None
    )
    wanted = [{**one, "title": "New"} for one in wanted]
    # Nothing succeeded before, so it might be the account.
    assert isinstance(world.apply(*wanted).halt, AuthenticationError)
    # From now on, they come last.
    applied = world.apply(*wanted)
    assert outcomes(applied) == {("rename", "succeeded"): 3, ("rename", "failed"): 2}
    assert applied.halt is None


def test_account_closed_during_apply_ends_it(world: World) -> None:
    wanted = [row(key, ANNA, BEN) for key in "abcdef"]

    def close(_account: Any, number: int) -> None:
        world.server.knobs.active = number <= 3

    world.server.knobs.on_request = close
    applied = world.apply(*wanted)
    assert isinstance(applied.halt, AuthenticationError)
    assert outcomes(applied) == {("create", "succeeded"): 2, ("create", "failed"): 2}
    assert applied.not_sent == 2


@pytest.mark.parametrize(
    "numbers", [(500, "failed"), (404, "not_found"), (400, "invalid_request"), (401, "refused"), (403, "refused"), None]
)
def test_apply_works_without_listed_numbers(world: World, numbers: tuple[int, str] | None) -> None:
    world.server.knobs.refusal = lambda _method, path: numbers if path.endswith("/numbers") else None
    if numbers is None:
        world.server.knobs.transform_row = lambda kind, one: None if kind == "numbers" else one
    world.apply(row("a", ANNA, BEN), row("b", ANNA, BEN, number="+14155550199"))
    assert {entry.key: entry.outcome for entry in world.entries()} == {"a": "succeeded", "b": "failed"}


@pytest.mark.parametrize("status", [400, 401, 403])
def test_group_that_cannot_be_fetched_waits_alone(world: World, status: int) -> None:
    world.apply(row("a", ANNA, BEN), row("b", ANNA, BEN))
    world.max_attempts = 1
    cut_next_write(world)
    rows = [row("a", ANNA, BEN, title="New"), row("b", ANNA, BEN, title="New")]
    world.apply(*rows)
    chat_id = str(world.observed("a").chat_id)
    world.server.knobs.refusal = lambda _method, path: (status, "refused") if chat_id in path else None
    applied = world.apply(*rows)
    assert [(one.key, one.outcome) for one in applied.failures] == [("a", "unknown")]
    assert world.observed("b").title == "New"
    world.server.knobs.refusal = None
    assert world.apply(*rows).resolved == 1
