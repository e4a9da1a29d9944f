"""A unit that fails affects nothing else: it is recorded, tried again later, and complete once it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from helpers.world import OURS, World, build_settings
from msgbubbles.errors import AuthenticationError, ForbiddenError, NotFoundError
from msgbubbles.policy import FULL, PRESETS, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles.settings import RefreshRule
from msgbubbles.source.run import Run
from msgbubbles.source.state import FIRST_WAIT_MS, TRIES_WITHOUT_WAIT, States, is_waiting
from msgbubbles.times import format_ms
from msgbubbles_sync.sandbox import Knobs, NewMessage

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def new_world() -> Iterator[Callable[..., World]]:
    worlds = []

    def make(knobs: Knobs | None = None, *, chats: int = 20, messages_each: int = 3) -> World:
        world = World(knobs or Knobs(), build_settings(5_000))
        worlds.append(world)
        for number in range(chats):
            at = world.at() - timedelta(minutes=number)
            chat_id = world.account.add_chat(OURS, f"+1415555{number:04}", at)
            world.account.add_messages(
                NewMessage(chat_id, "inbound", "hello", at + timedelta(seconds=one), "received")
                for one in range(messages_each)
            )
        world.pass_time(60_000)
        return world

    yield make
    for world in worlds:
        world.close()


def chat_ids(world: World) -> list[str]:
    return [row["id"] for row in world.account.all("SELECT id FROM chats ORDER BY id")]


def failed(world: World) -> list[tuple[Any, ...]]:
    found = States.from_resources(world.store.states).failed_reads
    return [(one.kind, one.id, one.http_status, one.error_code) for one in found]


def missing(world: World) -> dict[str, int]:
    """Return how many rows of each table are missing; nothing else may differ."""
    found = world.differences()
    assert not any(one["surplus"] or one["stale"] for one in found.values()), found
    return {table: one["missing"] for table, one in found.items()}


def fail_messages(chats: set[str], status: int, code: str) -> Callable[[str, str, Any], Any]:
    """Answer every request for the messages of these chats with an error."""

    def answer(_method: str, path: str, query: Any) -> tuple[int, dict[str, str], bytes] | None:
        if path == "/v1/messages" and query.get("conversation_id") in chats:
            return status, {}, f'{{"error": "{code}", "message": "no"}}'.encode()
        return None

    return answer


@pytest.mark.parametrize(("status", "code"), [(500, "internal"), (400, "invalid_request"), (403, "forbidden")])
@pytest.mark.parametrize("broken", [1, 12])
def test_failing_thread_affects_no_other_thread(
    new_world: Callable[..., World], status: int, code: str, broken: int
) -> None:
    world = new_world(Knobs(feed=False))
    chats = set(chat_ids(world)[:broken])
    world.knobs.answer = fail_messages(chats, status, code)
    run = world.sync()
    assert run.error is None
    assert missing(world) == {"messages": 3 * broken}
    assert failed(world) == [("thread", one, status, code) for one in sorted(chats)]
    world.knobs.answer = None
    world.sync()
    assert world.differences() == {}
    assert failed(world) == []


def test_failed_thread_is_retried_less_and_less_often(new_world: Callable[..., World]) -> None:
    world = new_world(Knobs(feed=False), chats=3)
    broken = chat_ids(world)[0]
    world.knobs.answer = fail_messages({broken}, 500, "internal")
    for _ in range(TRIES_WITHOUT_WAIT):
        world.sync()
    (entry,) = States.from_resources(world.store.states).failed_reads
    assert entry.tries == TRIES_WITHOUT_WAIT
    world.sync()
    assert States.from_resources(world.store.states).failed_reads == [entry], "not tried again before its time"
    world.pass_time(FIRST_WAIT_MS)
    world.sync()
    (later,) = States.from_resources(world.store.states).failed_reads
    assert (later.tries, later.since_ms) == (TRIES_WITHOUT_WAIT + 1, entry.since_ms)
    assert is_waiting(later.tries, later.last_tried_ms, later.last_tried_ms + FIRST_WAIT_MS)


def test_units_that_failed_by_a_clock_that_was_ahead_are_read_after_it(new_world: Callable[..., World]) -> None:
    world = new_world(Knobs(feed=False), chats=3)
    world.client_ahead_ms = 365 * DAY_MS
    world.knobs.answer = fail_messages({chat_ids(world)[0]}, 500, "internal")
    for _ in range(TRIES_WITHOUT_WAIT):
        world.sync()
    world.client_ahead_ms, world.knobs.answer, world.knobs.feed = 0, None, True
    world.sync()
    assert failed(world) == []
    assert world.store.states["messages"]["feed"] is True, "which was refused"
    assert world.differences() == {}


def test_messages_sent_while_a_thread_fails_are_read_later(new_world: Callable[..., World]) -> None:
    world = new_world(Knobs(feed=False), chats=5)
    world.sync()
    chat_id = chat_ids(world)[2]
    world.knobs.answer = fail_messages({chat_id}, 503, "unavailable")
    for _ in range(TRIES_WITHOUT_WAIT + 2):
        world.account.add_messages([NewMessage(chat_id, "inbound", "late", world.at(), "received")])
        world.pass_time(60_000)
        world.sync()
    world.knobs.answer = None
    world.pass_time(DAY_MS)
    world.sync()
    assert world.differences() == {}
    assert failed(world) == []


@pytest.mark.parametrize(("status", "code"), [(400, "invalid_request"), (403, "forbidden"), (500, "internal")])
def test_unreadable_chat_is_recorded_and_its_messages_are_stored(
    new_world: Callable[..., World], status: int, code: str
) -> None:
    def named(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        ids = {one: f"conv_{number}" for number, one in enumerate(hidden)}
        return row | {"conversation_id": ids.get(row["conversation_id"], row["conversation_id"])} if (
            kind == "messages"
        ) else row  # fmt: skip

    world = new_world(chats=8)
    hidden = chat_ids(world)[:2]
    world.knobs.transform_row = named
    world.knobs.refusal = lambda _method, path: (status, code) if "/conv_0" in path else None
    run = world.sync()
    assert run.error is None
    assert failed(world) == [("chat", "conv_0", status, code)]
    stored = {row["conversation_id"] for row in world.store.tables["messages"].values()}
    assert {"conv_0", "conv_1"} <= stored


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, "{}"),
        (200, "<html>"),
        (200, '{"data": {"id": "%s", "is_group": true}}'),
        (200, '{"data": {"id": "%s", "is_group": true, "participants": "Ann"}}'),
        (200, '{"data": {"id": "%s", "is_group": true, "participants": ' + "[" * 200 + "]" * 200 + "}}"),
    ],
)
def test_group_without_participants_affects_no_other_group(status: int, body: str) -> None:
    world = World(Knobs(), build_settings(read_participants=True))
    groups: list[str] = []
    for number in range(3):
        people, at = [f"+1415555{number:04}"], world.at() - timedelta(hours=number)
        groups.append(world.account.add_chat(OURS, f"group:{number}", at, is_group=True, participants=people))
        world.account.add_messages([NewMessage(groups[-1], "inbound", "hello", at, "received")])
    world.pass_time(60_000)
    odd, asked = groups[0], list[str]()  # the newest is asked first

    def answer(_method: str, path: str, _query: Any) -> tuple[int, dict[str, str], bytes] | None:
        asked.extend(group for group in groups if path.endswith(group))
        return (status, {}, body.replace("%s", odd).encode()) if path.endswith(odd) else None

    def read() -> set[str]:
        return {row["chat_id"] for row in world.store.tables["participant_lists"].values()}

    world.knobs.answer = answer
    assert world.sync().error is None
    assert (read(), asked[0]) == ({*groups[1:]}, odd)
    assert [unit[:2] for unit in failed(world)] == [("participants", odd)]
    for _ in range(TRIES_WITHOUT_WAIT):
        world.pass_time(60_000)
        world.sync()
    tried = len(asked)
    world.sync()
    assert (len(asked), failed(world)[0][:2]) == (tried, ("participants", odd)), "it waits"
    world.knobs.answer = None
    world.pass_time(2 * DAY_MS)
    world.sync()
    assert (read(), failed(world)) == ({*groups}, [])
    world.close()


def test_newest_groups_without_participants_affect_no_older_group() -> None:
    world = World(Knobs(), build_settings(read_participants=True))
    groups: list[str] = []
    for number in range(6):
        at = world.at() - timedelta(hours=number)
        groups.append(world.account.add_chat(OURS, f"group:{number}", at, is_group=True, participants=["+14155550999"]))
        world.account.add_messages([NewMessage(groups[-1], "inbound", "hello", at, "received")])
    odd, asked = [*groups], list[str]()

    def answer(_method: str, path: str, _query: Any) -> tuple[int, dict[str, str], bytes] | None:
        asked.extend(group for group in groups if path.endswith(group))
        group = path.rpartition("/")[2]
        return (200, {}, f'{{"data": {{"id": "{group}", "is_group": true}}}}'.encode()) if group in odd else None

    world.knobs.answer = answer
    for _ in range(20):
        world.pass_time(60_000)
        assert world.sync().error is None
    assert (len(asked), {*asked}, failed(world)) == (15, {*groups}, []), "an API that hides them is asked ever less"
    del odd[3:]
    world.pass_time(3 * 3_600_000)
    world.sync()
    world.pass_time(3 * 3_600_000)
    world.sync()
    assert {row["chat_id"] for row in world.store.tables["participant_lists"].values()} == {*groups[3:]}
    assert [unit[:2] for unit in failed(world)] == [("participants", group) for group in sorted(odd)]
    world.close()


def test_id_that_cannot_be_part_of_a_url_is_a_failed_read(new_world: Callable[..., World]) -> None:
    world = new_world(chats=3)
    odd = chat_ids(world)[0]
    world.knobs.transform_row = lambda kind, row: (
        row | {"conversation_id": ".."} if kind == "messages" and row["conversation_id"] == odd else row
    )
    assert world.sync().error is None
    assert failed(world) == [("chat", "..", None, None)]


NUMBERS = {
    "an error": (500, b'{"error": "internal", "message": ""}', 1),
    "closed": (403, b'{"error": "forbidden", "message": ""}', 1),
    "no JSON": (200, b"<html>", 1),
    "no list": (200, b'{"data": 7}', 1),
    "missing": (404, b'{"error": "not_found", "message": ""}', 0),
}


@pytest.mark.parametrize("spelling", NUMBERS)
def test_unreadable_numbers_affect_no_other_stream(new_world: Callable[..., World], spelling: str) -> None:
    status, body, failures = NUMBERS[spelling]
    world = new_world(chats=4)
    world.knobs.answer = lambda _method, path, _query: (status, {}, body) if path == "/v1/numbers" else None
    assert world.sync().error is None
    assert missing(world) == {"numbers": 1}
    assert len(failed(world)) == failures
    world.knobs.answer = None
    world.sync()
    assert (world.differences(), failed(world)) == ({}, [])


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_without_a_feed_messages_are_read_by_chat(new_world: Callable[..., World], status: int) -> None:
    def no_feed(_method: str, path: str, query: Any) -> tuple[int, dict[str, str], bytes] | None:
        refused = path == "/v1/messages" and "conversation_id" not in query
        asked.append(refused)
        return (status, {}, b'{"error": "invalid_request", "message": ""}') if refused else None

    asked: list[bool] = []
    world = new_world(Knobs(answer=no_feed), chats=4)
    world.sync()
    assert world.differences() == {}
    asked.clear()
    world.sync()
    assert not any(asked), "an API without a feed is not asked for it in every run"
    world.knobs.answer = None
    world.pass_time(DAY_MS)
    run = world.sync()
    assert run.feed is True
    assert world.differences() == {}


def test_failing_feed_is_replaced_by_changed_threads(new_world: Callable[..., World]) -> None:
    world = new_world(chats=10)
    world.sync()
    world.knobs.answer = lambda _method, path, query: (
        (500, {}, b"{}") if path == "/v1/messages" and "conversation_id" not in query else None
    )
    world.account.add_messages([NewMessage(chat_ids(world)[0], "inbound", "new", world.at(), "received")])
    world.pass_time(60_000)
    before = world.requests
    run = world.sync()
    assert world.differences() == {}
    assert failed(world) == [("feed", "messages", 500, None)]
    assert run.error is None
    assert world.requests - before < 45, "the feed's tries, and not every thread"
    world.knobs.answer = None
    world.pass_time(DAY_MS)
    world.sync()
    assert (world.differences(), failed(world)) == ({}, [])


def test_server_that_is_not_the_api_proves_nothing(new_world: Callable[..., World]) -> None:
    world = new_world(chats=3)
    world.knobs.answer = lambda *_: (404, {}, b"<html>not here</html>")
    run = world.sync(accept_failure=True)
    assert isinstance(run.error, NotFoundError)
    assert "is /v1 missing from base_url?" in str(run.error)
    assert "feed" not in world.store.states["messages"]
    world.knobs.answer = None
    assert world.sync().feed is True
    assert world.differences() == {}


def test_404_for_an_empty_account_is_an_empty_list(new_world: Callable[..., World]) -> None:
    world = new_world(chats=0)
    world.knobs.answer = lambda _method, path, _query: (404, {}, b"{}") if path != "/v1/numbers" else None
    assert world.sync().error is None
    assert failed(world) == []


def test_account_without_messages_is_complete_until_now(new_world: Callable[..., World]) -> None:
    world = new_world(chats=0)
    chat = world.account.add_chat(OURS, "+14155550123", world.at())

    def coverage() -> dict[str, tuple[int, Any]]:
        rows = world.store.tables["stream_coverage"].values()
        return {row["stream"]: (row["complete_since"].year, row["complete_to"]) for row in rows}

    world.sync(Run(max_requests=1))
    assert coverage() == {}
    world.sync()
    read_at = world.at() - timedelta(milliseconds=world.settings.lookback_ms)
    [(stream, (year, complete_to))] = coverage().items()
    assert (stream, year) == ("messages", 1)
    assert abs(complete_to - read_at) < timedelta(minutes=1)
    world.pass_time(DAY_MS)
    world.sync()
    assert coverage() == {"messages": (1, complete_to)}
    sent_at = world.at()
    world.account.add_message(NewMessage(chat, "inbound", "hello", sent_at, "received"))
    world.pass_time(60_000)
    world.sync()
    assert world.differences() == {}
    assert coverage()["messages"] == (1, sent_at + timedelta(milliseconds=1))


def test_inactive_account_ends_the_run(new_world: Callable[..., World]) -> None:
    world = new_world(Knobs(active=False), chats=3)
    run = world.sync(accept_failure=True)
    assert isinstance(run.error, ForbiddenError)
    assert run.is_stopped


def test_refused_key_ends_the_run_at_once(new_world: Callable[..., World]) -> None:
    world = new_world(Knobs(keys={"sk_test_other"}), chats=3)
    run = world.sync(accept_failure=True)
    assert type(run.error) is AuthenticationError
    assert world.requests == 2, "another endpoint refuses it too"
    assert failed(world) == []


@pytest.mark.parametrize("status", [401, 429])
@pytest.mark.parametrize("kind", ["numbers", "feed", "thread"])
def test_key_that_one_endpoint_refuses_is_used_for_the_others(
    new_world: Callable[..., World], kind: str, status: int
) -> None:
    def answer(_method: str, path: str, query: Any) -> tuple[int, dict[str, str], bytes] | None:
        is_refused = path == ("/v1/numbers" if kind == "numbers" else "/v1/messages")
        is_refused = is_refused and (kind != "thread" or query.get("conversation_id") == chat_ids(world)[0])
        return (status, {"Retry-After": "7200"}, b"{}") if is_refused else None

    world = new_world(Knobs(feed=kind != "thread", answer=answer), chats=3)
    if kind == "feed":  # then the messages are read chat by chat
        world.knobs.answer = lambda method, path, query: (
            None if query.get("conversation_id") else answer(method, path, query)
        )
    for _ in range(2):
        assert world.sync().error is None
        assert {one[:1] + one[2:3] for one in failed(world)} == {(kind, status)}
        assert missing(world) == {"numbers": {"numbers": 1}, "feed": {}, "thread": {"messages": 3}}[kind]
    world.knobs.answer = None
    world.pass_time(DAY_MS)
    world.sync()
    assert (world.differences(), failed(world)) == ({}, [])


def test_chats_are_read_even_if_all_message_lists_fail(new_world: Callable[..., World]) -> None:
    world = new_world(chats=30)
    world.knobs.answer = lambda _method, path, _query: (500, {}, b"{}") if path == "/v1/messages" else None
    run = world.sync()
    assert run.error is None
    assert set(world.differences()) == {"messages"}
    assert len(failed(world)) == 31


def test_api_outage_is_noticed_after_a_few_threads(new_world: Callable[..., World]) -> None:
    world = new_world(Knobs(feed=False), chats=60)
    down = False

    def answer(_method: str, _path: str, query: Any) -> tuple[int, dict[str, str], bytes] | None:
        nonlocal down
        down = down or "conversation_id" in query
        return (503, {}, b"{}") if down else None

    world.knobs.answer = answer
    run = Run()
    world.sync(run, accept_failure=True)
    assert run.error is not None
    assert world.requests < 160
    world.knobs.answer = None
    world.pass_time(DAY_MS)
    world.sync()
    assert (world.differences(), failed(world)) == ({}, [])


def page_with(table: str, row_id: str) -> Callable[[str, bytes], bytes]:
    """Break every page with this row."""
    return lambda path, body: b"{" if path == f"/v1/{table}" and row_id.encode() in body else body


@pytest.mark.parametrize(("table", "number"), [("messages", 25), ("messages", -1), ("chats", 0), ("chats", 25)])
def test_unreadable_page_costs_only_the_rows_around_it(
    new_world: Callable[..., World], table: str, number: int
) -> None:
    world = new_world(chats=40, messages_each=2)
    order = "created_us" if table == "messages" else "last_us"
    rows = [row["id"] for row in world.account.all(f"SELECT id FROM {table} ORDER BY {order} DESC")]
    world.knobs.transform_body = page_with(table, rows[number])
    for _ in range(2):
        assert world.sync().error is None
        # A chat whose newest message is on the page is read separately, in vain.
        assert {"page"} <= {one[0] for one in failed(world)} <= {"page", "thread"}
        assert missing(world).get(table, 1) <= 12
    world.knobs.transform_body = None
    world.pass_time(DAY_MS)
    world.sync()
    assert (world.differences(), failed(world)) == ({}, [])


def test_rows_below_a_failed_page_are_read_after_a_cut(
    new_world: Callable[..., World],
) -> None:
    def stop(_method: str, path: str, query: Any) -> None:
        if path == "/v1/messages" and query.get("before", "9") < failing_at and query["limit"] != "1":
            run.stop.set()

    world = new_world(chats=40, messages_each=2)
    rows = world.account.all("SELECT id, created_us FROM messages ORDER BY created_us DESC")
    failing_at = format_ms(rows[25]["created_us"] // 1000)
    world.knobs.transform_body = page_with("messages", rows[25]["id"])
    world.knobs.answer = stop
    for _ in range(TRIES_WITHOUT_WAIT):
        run = Run()
        world.sync(run)
        assert run.halt is not None
    assert [one[0] for one in failed(world)] == ["page"]
    world.knobs.answer = None
    world.sync()
    assert missing(world)["messages"] <= 12


@pytest.mark.slow
def test_page_that_fails_later_blocks_no_other_refresh(new_world: Callable[..., World]) -> None:
    world = new_world(chats=40, messages_each=2)
    world.settings = build_settings(5_000, messages=[RefreshRule(1, 72)])
    world.sync()
    rows = [row["id"] for row in world.account.all("SELECT id FROM messages ORDER BY created_us DESC")]
    world.knobs.transform_body = page_with("messages", rows[25])
    for status in ("delivered", "read"):
        for one in (rows[5], rows[-1]):
            world.account.set_status(one, status, world.at())
        for _ in range(TRIES_WITHOUT_WAIT):
            world.pass_time(3_700_000)
            world.sync()
        stored = world.store.tables["messages"]
        assert [stored[one,]["status"] for one in (rows[5], rows[-1])] == [status] * 2
        assert {"page"} <= {one[0] for one in failed(world)} <= {"page", "thread"}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("status", [500, 400, 403])
def test_list_without_any_answer_fails_the_run(new_world: Callable[..., World], status: int, is_first: bool) -> None:
    world = new_world(chats=30)
    if not is_first:
        world.sync()
    world.knobs.answer = lambda _method, path, _query: (status, {}, b"{}") if path == "/v1/chats" else None
    run = world.sync(accept_failure=True)
    assert str(run.error).startswith(f"chats: the API answered {status}")
    assert run.streams["messages"].rows, "the other stream is read"
    world.knobs.answer = None
    world.sync()
    assert (world.differences(), failed(world)) == ({}, [])


def test_outage_in_the_middle_of_a_list_fails_the_run(new_world: Callable[..., World]) -> None:
    def answer(*_: Any) -> tuple[int, dict[str, str], bytes] | None:
        return (503, {}, b"{}") if world.requests > 8 else None

    world = new_world(chats=60)
    world.knobs.answer = answer
    run = world.sync(accept_failure=True)
    assert run.error is not None
    assert failed(world) == []
    assert world.requests < 200
    world.knobs.answer = None
    world.sync()
    assert world.differences() == {}


def test_messages_wait_until_their_chat_can_be_read(new_world: Callable[..., World]) -> None:
    names = Pseudonymizer("k" * 32)
    world = new_world(chats=6)
    world.redactor = Redactor(FULL, names, frozenset({names.erased_handle("+14155550005")}))
    unclear, *_ = [row["id"] for row in world.account.all("SELECT id FROM chats WHERE remote_handle = '+14155550002'")]
    world.knobs.refusal = lambda _method, path: (500, "internal") if path.endswith(unclear) else None
    assert world.sync().error is None
    assert failed(world) == [("thread", unclear, 500, "internal")]
    assert missing(world) == {"messages": 6, "chats": 1}, "of the one that is erased, and of the other"
    assert unclear not in {row["conversation_id"] for row in world.store.tables["messages"].values()}
    world.knobs.refusal = None
    world.sync()
    assert failed(world) == []
    assert missing(world) == {"messages": 3, "chats": 1}


def test_unreadable_numbers_block_no_row_under_a_policy(new_world: Callable[..., World]) -> None:
    world = new_world(chats=4)
    world.redactor = Redactor(PRESETS["analytics"], Pseudonymizer("k" * 32))
    world.knobs.answer = lambda _method, path, _query: (500, {}, b"{}") if path == "/v1/numbers" else None
    assert world.sync().error is None
    assert (len(world.store.tables["chats"]), len(world.store.tables["messages"])) == (4, 12)
    assert failed(world) == [("numbers", "numbers", 500, None)]
