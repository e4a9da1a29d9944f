"""Apply against the sandbox: each way in which an answer can fail, and the entry in the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Raw

from helpers.group_world import OURS, World, cut_next_write, outcomes, row
from msgbubbles.decode import read_participants
from msgbubbles.errors import AuthenticationError, Interrupted
from msgbubbles.models import Chat
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.apply import build_idempotency_key
from msgbubbles_sync.groups.existing import ExistingGroup, import_group
from msgbubbles_sync.groups.job import (
    apply_groups,
    forget_group,
    list_groups,
    plan_groups,
    refresh_groups,
)
from msgbubbles_sync.groups.ledger import Ledger
from msgbubbles_sync.groups.model import Operation
from msgbubbles_sync.groups.plan import ChangeLimits, build_plan
from msgbubbles_sync.groups.view import fetch_view
from msgbubbles_sync.sandbox import Knobs

ANNA, BEN, CARLA, DORA = "+14155550111", "ben@example.com", "+14155550113", "dora@example.com"
NewWorld = Callable[..., World]


def test_group_is_created_and_follows_its_row(world: World) -> None:
    assert outcomes(world.apply(row("a", ANNA, BEN, title="One"))) == {("create", "succeeded"): 1}
    (entry,) = world.list_entries()
    assert (entry.http_status, entry.outcome, entry.message) == (201, "succeeded", None)
    assert entry.request_id
    assert entry.request_id.startswith("req_")
    changed = row("a", BEN, CARLA, title="Two", message="Never sent")
    assert outcomes(world.apply(changed)) == {
        ("rename", "succeeded"): 1,
        ("add", "succeeded"): 1,
        ("remove", "succeeded"): 1,
    }
    truth = world.server.truth()
    (group,) = [chat for chat in truth.chats if chat["is_group"]]
    assert group["title"] == "Two"
    assert world.server.account.participants(group["id"]) == [CARLA, BEN]
    assert [message["text"] for message in truth.messages] == ["Hello"]
    asked = len(world.server.requests)
    assert outcomes(world.apply(changed)) == {}
    assert world.requests(asked) == ["GET numbers"]


def test_failed_creation_does_not_stop_the_others(world: World) -> None:
    world.server.knobs.unreachable = {DORA}
    applied = world.apply(row("a", ANNA, BEN), row("b", ANNA, DORA), row("c", BEN, CARLA))
    assert outcomes(applied) == {("create", "succeeded"): 2, ("create", "failed"): 1}
    (failure,) = applied.failures
    assert (failure.key, failure.operation) == ("b", "create")
    assert failure.why.startswith("the API answered 400 invalid_handle (request req_")
    assert DORA not in failure.why
    entry = next(one for one in world.list_entries() if one.key == "b")
    assert (entry.outcome, entry.http_status, entry.error_code) == ("failed", 400, "invalid_handle")
    assert entry.error_message == f"{DORA} cannot be reached by iMessage"
    assert applied.not_sent == 0


def test_failed_addition_removes_nobody(world: World) -> None:
    world.apply(row("a", ANNA, BEN))
    world.server.knobs.unreachable = {CARLA, DORA}
    applied = world.apply(row("a", CARLA, DORA, title="New"))
    assert outcomes(applied) == {("rename", "succeeded"): 1, ("add", "failed"): 2}
    assert applied.not_sent == 2
    assert world.observed("a").members == {ANNA, BEN}


@pytest.mark.parametrize(("status", "code"), [(409, "not_a_group"), (404, "not_found")])
def test_chat_that_is_no_longer_a_group_fails_alone(world: World, status: int, code: str) -> None:
    world.apply(row("a", ANNA, BEN), row("b", ANNA, BEN))
    chat_id = world.observed("a").chat_id
    world.server.knobs.refusal = lambda _method, path: (status, code) if f"/{chat_id}" in path else None
    applied = world.apply(row("a", ANNA, CARLA, title="New"), row("b", ANNA, CARLA))
    assert outcomes(applied) == {("rename", "failed"): 1, ("add", "succeeded"): 1, ("remove", "succeeded"): 1}
    assert [failure.key for failure in applied.failures] == ["a"]
    assert f"{status} {code}" in applied.failures[0].why
    assert applied.not_sent == 2
    assert world.list_entries()[2].error_code == code


@pytest.mark.parametrize(("status", "code"), [(502, "add_failed"), (503, "device_offline")])
def test_next_apply_finds_out_an_unknown_outcome(world: World, status: int, code: str) -> None:
    world.apply(row("a", ANNA, BEN), row("b", ANNA, BEN))
    chat_id = world.observed("a").chat_id
    world.server.knobs.refusal = lambda method, path: (
        (status, code) if f"/{chat_id}" in path and method == "POST" else None
    )
    rows = [row("a", ANNA, CARLA), row("b", ANNA, CARLA)]
    applied = world.apply(*rows)
    assert outcomes(applied) == {
        ("add", "unknown"): 1,
        ("add", "succeeded"): 1,
        ("remove", "succeeded"): 1,
    }
    assert applied.failures[0].why.startswith(f"outcome unknown: {status} {code} (request req_")
    entry = world.list_entries()[2]
    assert (entry.outcome, entry.http_status, entry.error_code) == ("unknown", status, code)
    world.server.knobs.refusal = None
    asked = len(world.server.requests)
    applied = world.apply(*rows)
    # The chat shows that it was not done, so it is planned again.
    assert world.requests(asked)[:2] == ["GET numbers", f"GET {chat_id}"]
    assert applied.resolved == 1
    assert outcomes(applied) == {("add", "succeeded"): 1, ("remove", "succeeded"): 1}
    assert world.list_entries()[2].outcome == "failed"
    assert world.observed("a").members == {ANNA, CARLA}


@pytest.mark.parametrize("shown", [True, False])
def test_operation_without_an_answer_is_found_done(world: World, shown: bool) -> None:
    world.max_attempts = 1
    world.server.knobs.participants_on_detail = shown
    world.apply(row("a", ANNA, BEN))
    for wanted in (
        row("a", ANNA, BEN, title="New"),
        row("a", ANNA, BEN, CARLA, title="New"),
        row("a", ANNA, CARLA, title="New"),
        row("b", ANNA, BEN),
    ):
        done = len(world.server.operations)
        cut_next_write(world)
        applied = world.apply(wanted)
        assert [outcome for _, outcome in applied.counts] == ["unknown"]
        assert len(world.server.operations) == done + 1
        applied = world.apply(wanted)
        assert applied.resolved == 1
        assert outcomes(applied) == {}
        assert len(world.server.operations) == done + 1
        assert world.list_entries()[-1].outcome == "succeeded"
    assert len(world.server.truth().messages) == 2


def test_retry_that_finds_its_work_done_succeeds(world: World) -> None:
    world.apply(row("a", ANNA, BEN, CARLA))
    cut_next_write(world)
    applied = world.apply(row("a", ANNA, BEN))
    assert outcomes(applied) == {("remove", "succeeded"): 1}
    entry = world.list_entries()[-1]
    assert (entry.http_status, entry.error_code) == (404, "not_found")
    assert world.observed("a").members == {ANNA, BEN}


def test_removal_from_a_deleted_group_fails(world: World) -> None:
    world.apply(row("a", ANNA, BEN, CARLA))
    world.server.account.delete_chat(str(world.observed("a").chat_id))
    assert outcomes(world.apply(row("a", ANNA, BEN))) == {("remove", "failed"): 1}
    assert world.observed("a").is_gone
    assert outcomes(world.apply(row("a", ANNA, BEN))) == {}


def test_interrupted_creation_is_finished_as_begun(world: World) -> None:
    world.max_attempts = 1
    cut_next_write(world)
    assert outcomes(world.apply(row("a", ANNA, BEN, title="Old", message="First"))) == {("create", "unknown"): 1}
    applied = world.apply(row("a", ANNA, CARLA, title="New", message="Second"))
    assert applied.resolved == 1
    assert outcomes(applied) == {("rename", "succeeded"): 1, ("add", "succeeded"): 1, ("remove", "succeeded"): 1}
    assert [message["text"] for message in world.server.truth().messages] == ["First"]
    assert [done.operation for done in world.server.operations] == ["create", "rename", "add", "remove"]


def test_lost_ledger_creates_no_second_group(world: World) -> None:
    world.apply(row("a", ANNA, BEN))
    for path in world.workspace.folder.glob("groups.sqlite*"):
        path.unlink()
    world.apply(row("a", BEN, ANNA))
    assert world.list_entries()[0].http_status == 200
    assert [done.operation for done in world.server.operations] == ["create"]


def test_offline_number_does_not_stop_other_numbers(world: World) -> None:
    rows = [row(f"s{n}", ANNA, BEN) for n in range(6)] + [row("z", ANNA, BEN, number="+14155550101")]
    world.apply(*rows)
    sales = world.observed("z").chat_id
    offline = (503, "device_offline")
    world.server.knobs.refusal = lambda method, path: offline if method != "GET" and str(sales) not in path else None
    applied = world.apply(*({**one, "title": "New"} for one in rows))
    assert outcomes(applied) == {("rename", "unknown"): 3, ("rename", "succeeded"): 1}
    assert applied.not_sent == 3


def test_invalid_key_ends_the_apply(world: World) -> None:
    world.apply(row("a", ANNA, BEN))
    world.server.knobs.refusal = lambda method, _path: (403, "forbidden") if method != "GET" else None
    applied = world.apply(row("a", ANNA, BEN, title="New"), row("b", ANNA, BEN), row("c", ANNA, BEN))
    assert isinstance(applied.halt, AuthenticationError)
    # The first 403 may be about the group; the second shows that it is about the account.
    assert outcomes(applied) == {("rename", "failed"): 1, ("create", "failed"): 1}
    assert applied.not_sent == 1
    world.server.knobs.active = False
    with pytest.raises(AuthenticationError):
        world.apply(row("b", ANNA, BEN))


def test_refresh_plans_by_what_the_api_shows_now(world: World) -> None:
    titles = ("renamed", "joined", "deleted", "refused", "closed")
    rows = [*(row(title, ANNA, BEN, title=title) for title in titles), row("new", ANNA, BEN)]
    world.apply(*rows[:5])
    account, now = world.server.account, datetime.now(UTC)
    chat_ids = {key: str(world.observed(key).chat_id) for key in titles}
    account.rename(chat_ids["renamed"], "Theirs", now)
    account.add_participant(chat_ids["joined"], CARLA, now)
    account.delete_chat(chat_ids["deleted"])
    refused = {chat_ids["refused"]: (403, "forbidden"), chat_ids["closed"]: (401, "unauthorized")}
    world.server.knobs.refusal = lambda _, path: refused.get(path.rpartition("/")[2])
    assert [operation.kind for operation in plan_groups(world.context(), rows).operations] == ["create"]
    asked, counts = len(world.server.requests), list[int]()
    with world.client() as client:
        plan = refresh_groups(world.context(), client, rows, counts.append)
    assert {(operation.kind, operation.key) for operation in plan.operations} == {
        ("rename", "renamed"), ("remove", "joined"), ("create", "new"),
    }  # fmt: skip
    notes = {note.key: note.what for note in plan.notes}
    assert notes.keys() == {"deleted", "refused", "closed"}
    assert all(notes[key].startswith("not refreshed: ") for key in ("refused", "closed"))
    assert [request.split()[0] for request in world.requests(asked)] == ["GET"] * 6
    assert counts == [1, 2, 3, 4, 5, 6]
    # The ledger has what was seen, so that an apply does the same.
    assert plan_groups(world.context(), rows).operations == plan.operations


def test_stop_leaves_no_entry_for_unsent_operations(world: World) -> None:
    with world.client() as client:

        def stop(_applied: Any) -> None:
            client.transport._stop.set()

        applied = apply_groups(
            world.context(),
            client,
            [row("a", ANNA, BEN), row("b", ANNA, BEN)],
            on_operation=stop,
        )
    assert isinstance(applied.halt, Interrupted)
    assert applied.not_sent == 1
    assert [entry.key for entry in world.list_entries()] == ["a"]


def test_limits_refuse_before_anything_is_changed(world: World) -> None:
    world.apply(row("a", ANNA, BEN, CARLA, DORA))
    done = len(world.server.operations)
    with pytest.raises(UsageError, match=r"would create 2 groups, and 1 are allowed.*--max-creates 2"):
        world.apply(row("b", ANNA, BEN), row("c", ANNA, BEN), limits=ChangeLimits(creates=1))
    with pytest.raises(UsageError, match=r"would remove 2 people, and 1 are allowed.*--max-removals 2"):
        world.apply(row("a", ANNA, BEN), limits=ChangeLimits(removals=1))
    with pytest.raises(UsageError, match="no rows"):
        world.apply()
    assert len(world.server.operations) == done


def test_foreign_number_is_refused_before_anything_is_changed(world: World) -> None:
    with pytest.raises(UsageError, match=r"row 2 \(b\): from_handle is not one of the account's numbers"):
        world.apply(row("a", ANNA, BEN), row("b", ANNA, BEN, number="+14155550199"))
    assert world.requests() == ["GET numbers"]


def test_vanished_groups_are_reported_and_unchanged(world: World) -> None:
    world.apply(row("a", ANNA, BEN), row("b", ANNA, BEN))
    done = len(world.server.operations)
    world.apply(row("b", ANNA, BEN))
    assert len(world.server.operations) == done
    plan = build_plan([], {"a": world.observed("a")})
    assert plan.vanished == ("a",)


@pytest.mark.parametrize("shown", [True, False])
def test_existing_group_is_imported(world: World, shown: bool) -> None:
    world.server.knobs.participants_on_detail = shown
    with world.client() as client:
        group = client.create_group(OURS, [ANNA, BEN], "Hello", "Old")
        direct = client.send_message("Hi", to=ANNA, from_handle=OURS).conversation_id
        import_group(world.context(), client, ExistingGroup("a", group.id))
        with pytest.raises(UsageError, match="this group already has the key a"):
            import_group(world.context(), client, ExistingGroup("b", group.id))
        with pytest.raises(UsageError, match="this chat is not a group, and only groups can be imported"):
            import_group(world.context(), client, ExistingGroup("b", str(direct)))
        with pytest.raises(UsageError, match=r"404 not_found.*Check the id and the account"):
            import_group(world.context(), client, ExistingGroup("b", "00000000-0000-4000-8000-000000000000"))
        other = client.create_group(OURS, [ANNA, BEN], "Hello", "Other")
        with pytest.raises(UsageError, match=rf"a is the key of {group.id}\. Run groups\.py forget a first"):
            import_group(world.context(), client, ExistingGroup("a", other.id))
    known = world.observed("a")
    assert (known.chat_id, known.title) == (group.id, "Old")
    assert known.members == ({ANNA, BEN} if shown else set())
    applied = world.apply(row("a", ANNA, BEN, title="New"))
    # Members that are not known are added, which has no effect.
    assert applied.counts["add", "succeeded"] == (0 if shown else 2)
    assert [done.operation for done in world.server.operations] == ["create", "create", "rename"]


def test_forgotten_key_has_no_group_and_can_be_assigned_again(world: World) -> None:
    world.apply(row("a", ANNA, BEN, title="One"), row("b", ANNA, BEN))
    chat_id = str(world.observed("a").chat_id)
    with world.client() as client, Ledger.open(world.workspace.folder) as ledger:
        fetch_view(ledger, client, "a", chat_id)
    asked = len(world.server.requests)
    assert forget_group(world.context(), "a").chat_id == chat_id
    with pytest.raises(UsageError, match=r"no group has the key a\. Check"):
        forget_group(world.context(), "a")
    assert world.server.requests[asked:] == []
    assert list_groups(world.context()).keys() == {"b"}
    plan = plan_groups(world.context(), [row("a", ANNA, BEN), row("b", ANNA, BEN)])
    assert [(operation.kind, operation.key) for operation in plan.operations] == [("create", "a")]
    with world.client() as client:
        import_group(world.context(), client, ExistingGroup("other", chat_id))
    assert (world.observed("other").chat_id, world.observed("other").title) == (chat_id, "One")


def test_key_with_an_unknown_outcome_is_not_forgotten(world: World) -> None:
    world.max_attempts = 1
    cut_next_write(world)
    world.apply(row("a", ANNA, BEN))
    with pytest.raises(UsageError, match=r"a has an operation of unknown outcome. Run groups.py apply first"):
        forget_group(world.context(), "a")
    world.apply(row("a", ANNA, BEN))
    forget_group(world.context(), "a")


def test_idempotency_key_depends_on_the_whole_creation() -> None:
    creation = Operation("create", "a", (ANNA, BEN), "One", OURS, "Hello")
    key = build_idempotency_key(creation)
    assert build_idempotency_key(replace(creation, handles=(BEN, ANNA))) == key
    for other in (
        replace(creation, key="b"),
        replace(creation, handles=(ANNA, CARLA)),
        replace(creation, title=None),
        replace(creation, message="Hello!"),
        replace(creation, from_handle="+14155550101"),
    ):
        assert build_idempotency_key(other) != key
    assert len(key) < 64


@pytest.mark.parametrize(
    ("extra", "handles"),
    [
        (b'{"participants":["a@b.de","c@d.de"]}', ["a@b.de", "c@d.de"]),
        (b'{"participants":[{"handle":"a@b.de","name":"A"}]}', ["a@b.de"]),
        (b'{"participants":[]}', []),
        (b'{"participants":[1]}', None),
        (b'{"participants":2}', None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_participants_are_read_in_any_form(extra: bytes, handles: list[str] | None) -> None:
    assert read_participants(Chat(id="x", extra=Raw(extra))) == handles


def test_entries_are_on_disk_before_the_request(new_world: NewWorld) -> None:
    seen: list[Any] = []

    def on_request(_account: Any, _number: int) -> None:
        with Ledger.open(world.workspace.folder) as ledger:
            seen.append([(entry.key, entry.outcome) for entry in ledger.list_unresolved()])

    world = new_world(Knobs(on_request=on_request))
    world.apply(row("a", ANNA, BEN), row("b", ANNA, BEN))
    assert seen == [[], [("a", None)], [("b", None)]]
