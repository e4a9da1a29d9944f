"""The sandbox is the truth of other tests, so it has to keep its own promises."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from msgbubbles_sync.sandbox import KEY, Account, Knobs, Server, advance, seed, serve

PIPELINES = Path(__file__).parents[3] / "pipelines"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@contextmanager
def running(knobs: Knobs | None = None, account: Account | None = None) -> Iterator[tuple[Server, httpx.Client]]:
    if account is None:
        account = Account()
        seed(account, now=NOW, chats=60, messages=400, days=30)
    headers = {"Authorization": f"Bearer {KEY}"}
    with serve(account, knobs) as server, httpx.Client(base_url=server.url, headers=headers) as http:
        yield server, http


def ids(response: httpx.Response) -> list[str]:
    return [row["id"] for row in response.json()["data"]]


def test_every_answer_has_the_envelope() -> None:
    with running() as (_, http):
        for path, status in (("/chats", 200), ("/nothing", 404), ("/chats?limit=0", 400)):
            answer = http.get(path)
            assert answer.status_code == status
            assert answer.headers["X-Request-Id"] == answer.json()["request_id"]
            assert ("data" if status == 200 else "error") in answer.json()
            assert "Date" in answer.headers
        assert http.get("/chats").json()["has_more"] is True


@pytest.mark.parametrize(
    ("knobs", "key", "status", "code"),
    [
        (Knobs(), "wrong", 401, "unauthorized"),
        (Knobs(active=False), KEY, 403, "forbidden"),
        (Knobs(feed=False), KEY, 400, "invalid_request"),
        (Knobs(rate_limit_per_minute=0), KEY, 429, "rate_limited"),
    ],
)
def test_it_refuses_with_the_codes_of_the_api(knobs: Knobs, key: str, status: int, code: str) -> None:
    with running(knobs) as (_, http):
        answer = http.get("/messages", headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["error"]) == (status, code)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "before=yesterday"])
def test_it_checks_what_it_is_asked(query: str) -> None:
    with running() as (_, http):
        assert http.get(f"/chats?{query}").status_code == 400


def test_before_looks_behind_the_milliseconds_and_excludes_or_includes_its_instant() -> None:
    account, at = Account(), datetime(2026, 1, 1, tzinfo=UTC)
    for microseconds in (0, 1, 999, 1000):
        last = at + timedelta(microseconds=microseconds)
        account.add_chat("+14155550100", "x", at, last_message_at=last, chat_id=str(microseconds))
    with running(account=account) as (server, http):
        shown = {row["last_message_at"] for row in http.get("/chats").json()["data"]}
        assert shown == {"2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.001Z"}
        before = {"before": "2026-01-01T00:00:00.001Z"}
        assert ids(http.get("/chats", params=before)) == ["999", "1", "0"]
        server.knobs.before_inclusive = True
        assert ids(http.get("/chats", params=before)) == ["1000", "999", "1", "0"]


def test_the_orders_differ() -> None:
    account, at = Account(), datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(60):
        account.add_chat("+14155550100", "x", at, last_message_at=at if number else None, chat_id=f"{number:02}")
    with running(account=account) as (server, http):
        stable = ids(http.get("/chats"))
        assert stable == ids(http.get("/chats"))
        assert stable[0] == "00", "without a time, first"
        server.knobs.nulls = "last"
        server.knobs.tie_order = "reversed"
        assert ids(http.get("/chats?limit=100")) == [f"{number:02}" for number in reversed(range(60))]
        server.knobs.tie_order = "random"
        assert ids(http.get("/chats")) != ids(http.get("/chats"))


def test_short_pages_promise_more_and_are_not_empty() -> None:
    with running(Knobs(short_pages=1.0)) as (_, http):
        for _ in range(20):
            body = http.get("/messages?limit=100").json()
            assert 0 < len(body["data"]) < 100
            assert body["has_more"] is True


def test_faults_really_happen() -> None:
    with running(Knobs(cut_bodies=1.0)) as (server, http):
        with pytest.raises(httpx.RemoteProtocolError):
            http.get("/chats")
        server.knobs.cut_bodies, server.knobs.malformed_bodies = 0.0, 1.0
        with pytest.raises(json.JSONDecodeError):
            http.get("/chats").json()
        server.knobs.malformed_bodies, server.knobs.server_errors = 0.0, 1.0
        assert http.get("/chats").status_code in (502, 503)
        assert len(server.requests) == 3


def test_the_same_seed_tells_the_same_story_and_it_is_consistent() -> None:
    truths = []
    for _ in range(2):
        with running() as (server, _):
            truths.append(server.truth())
    chats = {row["id"]: row for row in truths[0].chats}
    assert truths[0].chats == truths[1].chats
    assert [row["text"] for row in truths[0].messages] == [row["text"] for row in truths[1].messages]
    newest: dict[str, str] = {}
    for row in truths[0].messages:
        newest[row["conversation_id"]] = max(newest.get(row["conversation_id"], ""), row["created_at"])
        assert (row["status"] == "received") == (row["direction"] == "inbound")
        assert (row["delivered_at"] is not None) == (row["status"] in ("delivered", "read"))
        assert (row["read_at"] is not None) == (row["status"] == "read")
        assert row["created_at"] <= (row["delivered_at"] or row["created_at"]) <= NOW.isoformat()
    assert {chat_id: chat["last_message_at"] for chat_id, chat in chats.items()} == newest
    assert {row["channel"] for row in truths[0].messages} >= {"imessage", "sms", "whatsapp"}
    assert any(chat["is_group"] for chat in chats.values())


def test_time_that_passes_brings_a_little_and_nothing_from_the_future() -> None:
    account = Account()
    seed(account, now=NOW, chats=60, messages=400, days=30)
    later = NOW + timedelta(seconds=20)
    assert advance(account, later) == 40
    with running(account=account) as (server, _):
        truth = server.truth()
    assert len(truth.chats) == 61
    assert len(truth.messages) == 440
    assert max(row["created_at"] for row in truth.messages) <= later.isoformat()
    assert advance(account, later + timedelta(days=2)) < 400


def started(state: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [sys.executable, "-m", "msgbubbles_sync.sandbox", "--state", str(state)]
    process = subprocess.Popen(
        [*command, "--chats", "20", "--messages", "50", "--until-stdin-closes"],
        cwd=PIPELINES,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, json.loads(process.stdout.readline())


@pytest.mark.slow
def test_it_remembers_itself_when_it_is_killed_and_ends_with_its_parent(tmp_path: Path) -> None:
    process, account = started(tmp_path / "state.sqlite")
    headers = {"Authorization": f"Bearer {account['key']}"}
    before = set(ids(httpx.get(f"{account['url']}/messages?limit=100", headers=headers)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process, account = started(tmp_path / "state.sqlite")
    after = set(ids(httpx.get(f"{account['url']}/messages?limit=100", headers=headers)))
    assert before < after
    assert len(before) == 50
    process.communicate(timeout=5)
    assert process.returncode == 0


@pytest.mark.parametrize("hour", [1, 8, 15, 22])
def test_an_answer_has_failed_at_any_time_of_day(hour: int) -> None:
    with closing(Account()) as account:
        seed(account, now=datetime(2026, 11, 26, hour, tzinfo=UTC), chats=40, messages=200)
        latest = account.all("SELECT direction, status, max(created_us) FROM messages GROUP BY chat_id")
    assert ("outbound", "failed") in {(row["direction"], row["status"]) for row in latest}


def test_dropped_account_closes_its_database_without_a_warning() -> None:
    def build() -> list[Account]:
        account = Account()
        used.append(account._database)
        owner = [account]
        account.on_event = lambda *_: owner.clear()  # each refers to the other, as with a server
        return owner

    used: list[object] = []
    owner = build()
    gc.collect()  # it now lists the database before the account
    used.clear()
    del owner
    gc.collect()  # a warning of Python 3.13 fails the test
