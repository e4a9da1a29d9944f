"""Pages that the API cannot make at the requested size, and the sizes that are requested then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from helpers.served import serve_seeded
from helpers.world import World, build_settings
from msgbubbles.client import Client
from msgbubbles.errors import PermanentError, RetryableError
from msgbubbles.models import Page
from msgbubbles.source.paginate import paginate_interval
from msgbubbles.transport import Transport
from msgbubbles_sync.sandbox import Account, Knobs, NewMessage, Server, seed, serve

CHATS, MESSAGES = 150, 700


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve_seeded(chats=CHATS, messages=MESSAGES) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    running.requests.clear()
    yield running
    running.knobs.answer = None


def build_client(server: Server, **options: Any) -> Client:
    return Client(Transport(server.url, server.key, None, max_backoff_seconds=0.01, **options))


def read_all(client: Client, stream: str = "messages") -> tuple[set[str], int]:
    """Return the ids of all rows of a stream, and the number of tie overflows."""

    def fetch(before: str | None) -> Page[Any]:
        return client.list_chats(before=before) if stream == "chats" else client.list_messages(before=before)

    results = list(paginate_interval(fetch, lo_ms=0, before_ms=None))
    return {row.key for result in results for row in result.page.rows}, sum(
        result.overflow is not None for result in results
    )


def over(limit: int, answer: Callable[[], tuple[int, dict[str, str], bytes]]) -> Any:
    def made(_method: str, _path: str, query: Mapping[str, str]) -> tuple[int, dict[str, str], bytes] | None:
        return answer() if int(query.get("limit", 0)) > limit else None

    return made


def slow() -> tuple[int, dict[str, str], bytes]:
    time.sleep(0.3)
    return 200, {}, b'{"data": []}'


FAULTS: dict[str, tuple[int, Callable[[], tuple[int, dict[str, str], bytes]]]] = {
    "503": (25, lambda: (503, {}, b'{"error": "unavailable"}')),
    "504 of a proxy": (60, lambda: (504, {}, b"<html>")),
    "cut": (25, lambda: (200, {"Content-Length": "99999"}, b'{"data": [{"id"')),
    "malformed": (7, lambda: (200, {}, b'{"data": [{"id": "1"')),
    "too slow": (25, slow),
    "400": (50, lambda: (400, {}, b'{"error": "invalid_request"}')),
    "413": (25, lambda: (413, {}, b"")),
    "422": (10, lambda: (422, {}, b"{}")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_smaller_pages_are_requested_after_failures(server: Server, fault: str) -> None:
    limit, answer = FAULTS[fault]
    server.knobs.answer = over(limit, answer)
    with build_client(server, timeout_seconds=0.25) as client:
        # A refused feed counts as missing.
        stream, rows = ("chats", CHATS) if fault in ("400", "422") else ("messages", MESSAGES)
        ids, overflows = read_all(client, stream)
    assert (len(ids), overflows) == (rows, 0)
    failed = [number for number, seen in enumerate(server.requests) if int(seen.query["limit"]) > limit]
    assert len(failed) <= 12, "what has failed is not tried again with every page"
    assert len(server.requests) <= 3 * rows / limit + 8


@pytest.mark.parametrize("max_attempts", [2, 3, 4, 6])
def test_few_attempts_suffice_to_find_a_size(server: Server, max_attempts: int) -> None:
    server.knobs.answer = over(1, FAULTS["503"][1])
    with build_client(server, max_attempts=max_attempts) as client:
        assert len(client.list_messages().rows) == 1
    assert [seen.status for seen in server.requests[:max_attempts]] == [503] * (max_attempts - 1) + [200]


def test_page_over_the_size_limit_is_read_in_parts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgbubbles.responses.MAX_BODY_BYTES", 20_000)
    with build_client(server) as client:
        assert read_all(client) == ({row["id"] for row in server.truth().messages}, 0)
        # A single row that is too large fails, with the reason.
        monkeypatch.setattr("msgbubbles.responses.MAX_BODY_BYTES", 10)
        with pytest.raises(RetryableError, match="over 10 bytes"):
            client.list_messages()


def test_pages_are_large_again_after_an_outage(server: Server) -> None:
    with build_client(server) as client:
        server.knobs.answer = lambda *_: (503, {}, b"") if len(server.requests) < 5 else None
        ids, overflows = read_all(client)
        assert (len(ids), overflows) == (MESSAGES, 0)
        limits = [int(seen.query["limit"]) for seen in server.requests]
        assert limits[:6] == [100, 100, 50, 25, 12, 6]
        assert limits[6:12] == [12, 24, 48, 96, 100, 100]
        # If nothing is answered at all, the page size is not the reason.
        server.knobs.answer = lambda *_: (503, {}, b"")
        with pytest.raises(RetryableError):
            client.list_messages()
        server.knobs.answer = None
        assert client.list_messages().full
        assert server.requests[-1].query["limit"] == "100"


def test_page_is_full_by_the_requested_limit(server: Server) -> None:
    server.knobs.answer = over(25, FAULTS["503"][1])
    with build_client(server) as client:
        page = client.list_messages()
        assert (len(page), page.full) == (25, True)
        assert not client.list_messages(before="1971-01-01T00:00:00Z").full


def test_refusal_for_another_reason_costs_one_request(server: Server) -> None:
    server.knobs.answer = lambda *_: (400, {}, b'{"error": "invalid_request"}')
    with build_client(server) as client:
        with pytest.raises(PermanentError):
            client.list_chats()
        assert [seen.query["limit"] for seen in server.requests] == ["100", "1"]
        server.knobs.answer = None
        assert client.list_chats().full


def test_page_too_small_for_its_ties_is_enlarged() -> None:
    account, at = Account(), datetime(2026, 5, 1, tzinfo=UTC)
    chat_id = account.add_chat("+14155550100", "+14155550123", at)
    account.add_messages(NewMessage(chat_id, "inbound", "hello", at, "received") for _ in range(40))
    with serve(account, Knobs()) as server, build_client(server) as client:
        # Long enough to make it cautious about larger pages.
        server.knobs.answer = lambda _method, _path, query: (
            (503, {}, b"") if int(query["limit"]) > 25 and len(server.requests) < 6 else None
        )
        ids, overflows = read_all(client)
        assert (len(ids), overflows) == (40, 0)
    account.close()


@pytest.mark.parametrize("feed", [True, False])
@pytest.mark.parametrize("fault", ["503", "400"])
def test_account_is_read_completely_in_smaller_pages(fault: str, feed: bool) -> None:
    limit, answer = FAULTS[fault]
    knobs = Knobs(feed=feed, answer=over(limit, answer))
    with closing(World(knobs, build_settings(), page_size=100)) as world:
        world.account.run("DELETE FROM numbers")
        seed(world.account, now=world.at(), chats=150, messages=400, days=20)
        run = world.sync()
        assert world.differences() == {}
        assert not any(progress.standing for progress in run.streams.values())
        assert world.requests < 250
