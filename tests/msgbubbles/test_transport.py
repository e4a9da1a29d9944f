from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.served import serve_seeded
from msgbubbles.client import Client
from msgbubbles.errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    Interrupted,
    LimitReached,
    NotFoundError,
    PermanentError,
    RateLimitedError,
    RetryableError,
)
from msgbubbles.rate_limit import RateLimiter
from msgbubbles.responses import parse_retry_after
from msgbubbles.transport import Transport, check_base_url
from msgbubbles_sync.sandbox import Server

SECRET = "sk_live_secret_of_mine"  # noqa: S105 - nobody's
TEXT = "a text that nobody else may see"


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_seeded(chats=20, messages=60) as server:
        yield server


def build_client(server: Server, rate_limiter: RateLimiter | None = None, **options: Any) -> Client:
    return Client(Transport(server.url, server.key, rate_limiter, max_backoff_seconds=0.02, **options))


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that sends these answers, one per connection. Yield its URL and its requests."""
    listener = socket.create_server(("127.0.0.1", 0))
    got: list[bytes] = []

    def answer() -> None:
        for body in answers:
            connection, _ = listener.accept()
            with connection:
                got.append(connection.recv(65536))
                connection.sendall(body)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", got
    finally:
        thread.join(1)
        listener.close()


def http(status: str, body: str = "{}", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body.encode())}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


@pytest.mark.parametrize("fault", ["server_errors", "cut_bodies", "malformed_bodies"])
def test_failures_are_retried_and_end_as_retryable(server: Server, fault: str) -> None:
    setattr(server.knobs, fault, 1.0)
    with build_client(server, max_attempts=4) as client, pytest.raises(RetryableError):
        client.list_chats()
    assert len(server.requests) == 4
    assert client.transport.traffic.retries == 3

    setattr(server.knobs, fault, 0.4)
    with build_client(server, max_attempts=40) as client:
        assert {len(client.list_chats()) for _ in range(5)} == {20}


def test_unreachable_api_is_retried() -> None:
    with Client(Transport("http://127.0.0.1:9/v1", SECRET, None, max_attempts=3, max_backoff_seconds=0.01)) as client:
        with pytest.raises(RetryableError, match="could not be reached"):
            client.list_chats()
        assert client.transport.traffic.total == 3


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("400 Bad Request", "invalid_request", PermanentError),
        ("401 Unauthorized", "unauthorized", AuthenticationError),
        ("403 Forbidden", "forbidden", AuthenticationError),
        ("404 Not Found", "not_found", NotFoundError),
        ("409 Conflict", "not_a_group", ConflictError),
        ("418 Teapot", "new_code", PermanentError),
    ],
)
def test_permanent_failure_is_not_retried(status: str, code: str, kind: type[ApiError]) -> None:
    body = f'{{"error": "{code}", "message": "{TEXT}", "request_id": "req_1"}}'
    with answering(http(status, body)) as (url, got), Client(Transport(url, SECRET, None)) as client:
        with pytest.raises(kind) as raised:
            client.get_chat("c1")
        assert (raised.value.code, raised.value.request_id) == (code, "req_1")
        assert len(got) == 1


@pytest.mark.parametrize("chat_id", ["x" * 100_000, "half an emoji \ud83d"])
def test_id_too_long_for_a_url_is_refused_without_a_request(server: Server, chat_id: str) -> None:
    with build_client(server) as client:
        with pytest.raises(PermanentError) as raised:
            client.list_messages(chat_id)
        assert chat_id not in whole_text(raised.value)
        assert server.requests == []


def test_429_waits_for_retry_after_and_is_no_attempt(tmp_path: Path) -> None:
    limited = http("429 Too Many Requests", "{}", "Retry-After: 1")
    good = http("200 OK", '{"data": []}')
    rate_limiter = RateLimiter(tmp_path / "budget", 100)
    with (
        answering(limited, limited, good) as (url, _),
        Client(Transport(url, SECRET, rate_limiter, max_attempts=1)) as client,
    ):
        began = time.monotonic()
        assert len(client.list_chats()) == 0
        assert 1.9 < time.monotonic() - began < 30
        assert client.transport.traffic.rate_limited == 2


def test_waiting_for_429s_ends() -> None:
    limited = http("429 Too Many Requests", "{}", "Retry-After: 30")
    with answering(limited) as (url, _), Client(Transport(url, SECRET, None, rate_limit_patience_seconds=5)) as client:
        began = time.monotonic()
        with pytest.raises(RateLimitedError):
            client.list_chats()
        assert time.monotonic() - began < 20  # instead of 30


def test_retry_after_is_read_in_both_forms() -> None:
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert parse_retry_after("7", now) == 7
    assert parse_retry_after(format_datetime(now + timedelta(seconds=9), usegmt=True), now) == 9
    assert parse_retry_after("0", now) == 1
    for unusable in (None, "soon", "nan", "inf", ""):
        assert parse_retry_after(unusable, now) is None


def test_redirect_is_not_followed_with_the_key() -> None:
    with answering(http("200 OK", '{"data": []}')) as (other, got):
        moved = http("307 Temporary Redirect", "", f"Location: {other}/chats")
        with (
            answering(moved) as (url, _),
            Client(Transport(url, SECRET, None)) as client,
            pytest.raises(PermanentError, match="redirects are not followed"),
        ):
            client.list_chats()
        assert got == []


@pytest.mark.parametrize(
    "url", ["https://api.msgbubbles.com/v1", "http://127.0.0.1:8/v1", "http://localhost/v1", "http://[::1]:80/v1"]
)
def test_key_is_sent_to_https_and_to_this_machine(url: str) -> None:
    assert str(check_base_url(url)) == url.replace(":80/", "/")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/v1",
        "http://127.0.0.1.example.com/v1",
        "http://10.0.0.1/v1",
        "ftp://127.0.0.1/v1",
        "api.msgbubbles.com/v1",
        "https:///v1",
        "http://[::1",
        "https://api.msgbubbles.com:port/v1",
        "https://user@api.msgbubbles.com/v1",
    ],
)
def test_key_is_sent_nowhere_else(url: str) -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        check_base_url(url)


@pytest.mark.parametrize("key", ["", "Bearer sk_live_hush", "sk_live_hush\n", "sk_live_hüsh", '"sk_live_hush"'])
def test_key_with_other_characters_is_refused_unquoted(key: str) -> None:
    with pytest.raises(ConfigurationError, match="api_key") as refused:
        Transport("https://api.example.com/v1", key, None)
    assert "hush" not in str(refused.value)


def test_run_sends_no_more_requests_than_allowed(server: Server) -> None:
    with build_client(server, max_requests=3) as client:
        for _ in range(3):
            client.list_chats()
        with pytest.raises(LimitReached):
            client.list_chats()
    assert len(server.requests) == 3


@pytest.mark.parametrize("wait", ["backoff", "budget", "limit"])
def test_stop_ends_every_wait_and_sends_nothing_more(server: Server, tmp_path: Path, wait: str) -> None:
    stop = threading.Event()
    rate_limiter = RateLimiter(tmp_path / "budget", 1 if wait == "budget" else 100)
    server.knobs.server_errors = 1.0 if wait == "backoff" else 0.0
    server.knobs.rate_limit_per_minute = 1 if wait == "limit" else None
    with Client(Transport(server.url, server.key, rate_limiter, max_attempts=50, stop=stop)) as client:
        if wait != "backoff":
            client.list_chats()
        timer = threading.Timer(0.3, stop.set)
        timer.start()
        began = time.monotonic()
        with pytest.raises(Interrupted):
            client.list_chats()
        assert time.monotonic() - began < 10
        asked = len(server.requests)
        with pytest.raises(Interrupted):
            client.list_chats()
        assert len(server.requests) == asked
        timer.join()


def whole_text(error: BaseException | None) -> str:
    """Return the text of an error and of all its causes."""
    words = ""
    while error is not None:
        words += f"{error!s} {error!r} {vars(error)} "
        error = error.__cause__ or error.__context__
    return words


def test_errors_and_logs_have_no_key_handle_or_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    handle = "+14155550123"
    bodies = [
        http("200 OK", f'{{"data": [{{"id": 5, "text": "{TEXT}"'),
        http("404 Not Found", f'{{"error": "{handle}", "message": "{TEXT} {handle}"}}'),
    ]
    with answering(*bodies) as (url, _), Client(Transport(url, SECRET, None, max_attempts=1)) as client:
        with pytest.raises(RetryableError) as malformed:
            client.list_messages()
        with pytest.raises(NotFoundError) as missing:
            client.remove_participant("chat", handle)
    for words in (whole_text(malformed.value), whole_text(missing.value), caplog.text):
        for secret in (SECRET, handle, handle[1:], TEXT):
            assert secret not in words


def test_later_fetch_has_a_later_time_if_the_clock_is_set_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        times = iter([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)])

        @classmethod
        def now(cls, _tz: Any = None) -> datetime:  # type: ignore[override]
            return next(cls.times)

    monkeypatch.setattr("msgbubbles.api_time.datetime", Clock)
    with build_client(server) as client:
        first, second = client.list_chats(), client.list_chats()
    assert first.fetched_at < second.fetched_at


# -- the rate limiter


@settings(deadline=None)
@given(st.lists(st.floats(0, 30), min_size=1, max_size=80), st.integers(1, 6))
@example([1.3326569399768442, 1.2108555878837681, 29.0, 30.0, 1.0], 3)  # 60 s later, except for the last bit
def test_no_window_has_more_requests_than_allowed(pauses: list[float], limit: int) -> None:
    now = 1000.0
    folder = TemporaryDirectory()
    rate_limiter = RateLimiter(Path(folder.name) / "budget", limit, window_seconds=60, clock=lambda: now)
    admitted: list[float] = []
    for pause in pauses:
        now += pause
        wait = rate_limiter.acquire()
        if wait:
            now += wait + 1e-6
            assert rate_limiter.acquire() == 0, "what it says to wait is enough"
        admitted.append(now)
    rate_limiter.close()
    folder.cleanup()
    for at in admitted:
        assert sum(at < other + 60 and other <= at for other in admitted) <= limit


def test_burst_is_allowed_and_survives_a_restart(tmp_path: Path) -> None:
    first = RateLimiter(tmp_path / "budget", 5)
    assert [first.acquire() for _ in range(5)] == [0.0] * 5
    first.close()
    second = RateLimiter(tmp_path / "budget", 5)
    assert 55 < second.acquire() <= 61
    assert second.count_requests() == 5
    second.close()


@pytest.mark.slow
def test_processes_share_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "budget"
    spend = (
        "import sys; from pathlib import Path; from msgbubbles.rate_limit import RateLimiter\n"
        f"b = RateLimiter(Path({str(path)!r}), 50); print(sum(b.acquire() == 0 for _ in range(40))); b.close()"
    )
    pipelines = str(Path(__file__).parents[2] / "pipelines")
    processes = [
        subprocess.Popen([sys.executable, "-c", spend], stdout=subprocess.PIPE, cwd=pipelines, text=True)
        for _ in range(3)
    ]
    assert sum(int(process.communicate()[0]) for process in processes) == 50


def test_clock_that_is_set_back_does_not_block(tmp_path: Path) -> None:
    now = 1_000_000.0
    rate_limiter = RateLimiter(tmp_path / "budget", 2, clock=lambda: now)
    rate_limiter.acquire()
    rate_limiter.acquire()
    rate_limiter.note_rate_limited(3000)
    now -= 500_000
    assert 0 < rate_limiter.acquire() <= 61, (
        "what was written a moment ago counts as now, and not as long as the clock is off"
    )
    rate_limiter.close()


def test_429_closes_the_window_for_every_process(tmp_path: Path) -> None:
    now = 1000.0
    one = RateLimiter(tmp_path / "budget", 100, clock=lambda: now)
    other = RateLimiter(tmp_path / "budget", 100, clock=lambda: now)
    one.note_rate_limited(20)
    assert other.acquire() == 20
    now += 20.5
    assert other.acquire() == 0
    one.close()
    other.close()


def test_file_name_does_not_contain_the_key(tmp_path: Path) -> None:
    RateLimiter.for_key(SECRET, 1, tmp_path).close()
    RateLimiter.for_key("another", 1, tmp_path).close()
    names = [path.name for path in tmp_path.glob("*.sqlite")]
    assert len(names) == 2
    assert not any(SECRET[8:] in name for name in names)
