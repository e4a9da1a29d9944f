"""Groups that an API refuses, and what that means for the others."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.group_world import World, cut_next_write, outcomes, row
from msgbubbles.errors import AuthenticationError

ANNA, BEN = "+14155550111", "ben@example.com"


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
    assert {entry.key: entry.outcome for entry in world.list_entries()} == {"a": "succeeded", "b": "failed"}


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
