"""Messages are read from the feed, or chat by chat without one."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from helpers.served import serve_seeded
from helpers.world import OURS, World, build_settings
from msgbubbles.client import Client
from msgbubbles.models import Page
from msgbubbles.source.buffer import RowBuffer
from msgbubbles.source.messages import read_messages
from msgbubbles.source.run import Run
from msgbubbles.source.streams import read_stream
from msgbubbles.transport import Transport
from msgbubbles_sync.sandbox import Knobs, NewMessage

pytestmark = pytest.mark.usefixtures("small_parts")


def read_message_ids(client: Client, state: dict[str, Any], run: Run) -> set[str]:
    buffer = RowBuffer(("messages", "attachments"))
    found: set[str] = set()
    put = buffer._put

    def noting(table: str, key: str, row: Any, fetched_at: datetime) -> None:
        found.update({key} if table == "messages" else ())
        put(table, key, row, fetched_at)

    buffer._put = noting  # type: ignore[method-assign]
    run.keep_on_error = True
    for _ in read_stream(read_messages, client, buffer, state, run):
        pass
    assert run.error is None
    return found


@pytest.mark.slow
def test_more_new_threads_than_a_batch_has_pages_finish() -> None:
    with closing(World(Knobs(feed=False), build_settings())) as world:
        for _ in range(30):
            chat_id = world.account.add_chat(OURS, "+14155550123", world.at())
            for _ in range(7):
                world.account.add_message(NewMessage(chat_id, "inbound", "hi", world.at(), "received"))
                world.pass_time(1)
        world.sync(Run(batch_pages=10))
        assert world.differences() == {}
        world.sync(Run(batch_pages=10))


def test_threads_cut_off_every_few_requests_are_complete_in_the_end() -> None:
    with serve_seeded(Knobs(feed=False), chats=25, messages=300) as server:
        long = server.account.all("SELECT id FROM chats LIMIT 1")[0]["id"]
        times = [datetime.now(UTC) - timedelta(minutes=n) for n in range(250)]
        server.account.add_messages([NewMessage(long, "inbound", "x", at, "received") for at in times])
        state: dict[str, Any] = {"has_tables": True}
        found: set[str] = set()
        for allowed in (5, 9, 13, 4, 200):
            run = Run()
            with Client(Transport(server.url, server.key, None, max_requests=allowed)) as client:
                found |= read_message_ids(client, state, run)
        assert found == {row["id"] for row in server.truth().messages}
        assert state["feed"] is False


def test_thread_that_grew_by_more_than_a_page_is_read_completely() -> None:
    few = serve_seeded(Knobs(feed=False), chats=5, messages=20)
    with few as server, Client(Transport(server.url, server.key, None)) as client:
        state: dict[str, Any] = {"has_tables": True}
        read_message_ids(client, state, Run())
        chat_id, now = server.truth().chats[0]["id"], datetime.now(UTC)
        times = [now + timedelta(milliseconds=n) for n in range(250)]
        new = server.account.add_messages([NewMessage(chat_id, "inbound", "x", at, "received") for at in times])
        assert set(new) <= read_message_ids(client, state, Run())


@pytest.mark.parametrize("feed", [True, False])
def test_refused_feed_is_remembered(feed: bool) -> None:
    few = serve_seeded(Knobs(feed=feed), chats=5, messages=20)
    with few as server, Client(Transport(server.url, server.key, None)) as client:
        state: dict[str, Any] = {"has_tables": True}
        for _ in range(2):
            run = Run()
            read_message_ids(client, state, run)
            assert run.feed is feed
        refused = [seen for seen in server.requests if seen.status == 400]
        assert len(refused) == (0 if feed else 1)


def test_empty_feed_is_not_trusted() -> None:
    few = serve_seeded(chats=5, messages=20)
    with few as server, Client(Transport(server.url, server.key, None)) as client:
        asked = client.list_messages

        def no_feed(conversation_id: str | None = None, limit: int = 100, before: str | None = None) -> Any:
            page = asked(conversation_id, limit, before)
            return page if conversation_id else Page([], [], False, False, page.fetched_at, page.server_at)

        client.list_messages = no_feed  # type: ignore[method-assign]
        assert len(read_message_ids(client, {"has_tables": True}, Run())) == 20
