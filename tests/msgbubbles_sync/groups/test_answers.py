"""Answers to writes as an API may give them: without a body, late, or redundant."""

from __future__ import annotations

import json

import pytest

from helpers.group_world import OURS, World, groups_in, outcomes, people_in, row
from msgbubbles.errors import NoIdError, NotFoundError
from msgbubbles_sync.groups.existing import ExistingGroup, import_group

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
    assert {entry.chat_id for entry in world.list_entries()} == {chat_id}
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
    assert [entry.outcome for entry in world.list_entries()] == ["failed", "succeeded"]
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
    world.server.account.add_participant(str(world.observed("a").chat_id), CARLA, world.list_entries()[0].requested_at)
    world.server.knobs.refusal = lambda _method, path: (409, code) if path.endswith("/participants") else None
    applied = world.apply(row("a", ANNA, BEN, CARLA))
    assert outcomes(applied) == {("add", "succeeded"): 1}
    assert [one.what for one in applied.remarks] == ["the person was already in the group"]
    assert applied.failures == []


@pytest.mark.parametrize(("status", "shown"), [(404, False), (409, True), (409, False)])
def test_removing_a_former_member_succeeds_with_a_remark(world: World, status: int, shown: bool) -> None:
    world.apply(row("a", ANNA, BEN, CARLA))
    world.server.knobs.participants_on_detail = shown
    world.server.account.remove_participant(
        str(world.observed("a").chat_id), CARLA, world.list_entries()[0].requested_at
    )
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
