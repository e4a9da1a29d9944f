"""A backfill uses the whole limit and stays within it: real processes and real time, but shorter minutes.

A run under a limit of 120 in 60 s takes minutes. These have windows of seconds, and the rate limiter's is longer by the
same ratio.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from helpers.process import PIPELINES, Process
from msgbubbles.rate_limit import WINDOW_SECONDS
from msgbubbles_sync.sandbox import Account, Knobs, NewMessage, Server, serve

pytestmark = pytest.mark.slow

# Each page has one new row.
BACKFILL = """
import sys
from pathlib import Path
from msgbubbles.client import Client
from msgbubbles.rate_limit import RateLimiter
from msgbubbles.transport import Transport
from msgbubbles.source.paginate import paginate_interval

url, key, path, limit, window_seconds = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
budget = RateLimiter(Path(path), int(limit), window_seconds=float(window_seconds))
with Client(Transport(url, key, budget)) as client:
    pages = lambda before: client.list_messages(limit=2, before=before)
    for _ in paginate_interval(pages, lo_ms=0, before_ms=None):
        pass
"""


@dataclass
class Limited:
    """An account behind a limit of `limit` requests in `window_seconds`, and its requests."""

    server: Server
    limit: int
    window_seconds: float
    folder: Path
    asked_at: list[float] = field(default_factory=list)

    def backfill(self, *configured: int) -> None:
        """Read all messages with one process per configured limit; they share a record."""
        # The ratio of 61 seconds to a minute.
        window_seconds = self.window_seconds * WINDOW_SECONDS / 60
        processes = [
            Process(
                [
                    *(sys.executable, "-c", BACKFILL, self.server.url, self.server.key),
                    *(str(self.folder / "budget"), str(limit), str(window_seconds)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=PIPELINES,
            )
            for limit in configured
        ]
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=120)
            assert process.returncode == 0

    def share(self) -> float:
        """Return the shortest possible time for the requests under the limit, as a share of the time they took."""
        least_seconds = (len(self.asked_at) - 1) // self.limit * self.window_seconds
        return least_seconds / (self.asked_at[-1] - self.asked_at[0])

    def note_rate_limited(self) -> list[int]:
        """Return the numbers of the requests that were answered with 429."""
        return [number for number, seen in enumerate(self.server.requests) if seen.status == 429]


NewLimited = Callable[..., Limited]


@pytest.fixture
def new_limited(tmp_path: Path) -> Iterator[NewLimited]:
    """Return a function that builds an account whose messages take this many requests to read."""
    with ExitStack() as stack:

        def make(requests: int, limit: int, window_seconds: float) -> Limited:
            account, at = Account(), datetime(2026, 5, 1, tzinfo=UTC)
            stack.callback(account.close)
            account.add_number("+14155550100", "Support")
            chat_id = account.add_chat("+14155550100", "+14155550123", at)
            account.add_messages(
                NewMessage(chat_id, "inbound", "hello", at + timedelta(seconds=number), "received")
                for number in range(requests)
            )
            knobs = Knobs(rate_limit_per_minute=limit, rate_window="fixed", rate_window_seconds=window_seconds)
            limited = Limited(stack.enter_context(serve(account, knobs)), limit, window_seconds, tmp_path)
            knobs.on_request = lambda _account, _number: limited.asked_at.append(time.monotonic())
            return limited

        yield make


def test_backfill_uses_the_whole_limit_and_never_more(new_limited: NewLimited) -> None:
    limited = new_limited(requests=501, limit=125, window_seconds=6)
    limited.backfill(125)
    assert len(limited.asked_at) >= 501
    assert limited.note_rate_limited() == []
    assert limited.share() >= 0.97


def test_two_processes_with_one_key_share_the_limit(new_limited: NewLimited) -> None:
    limited = new_limited(requests=126, limit=125, window_seconds=6)
    limited.backfill(125, 125)
    assert len(limited.asked_at) >= 252
    assert limited.note_rate_limited() == []
    assert limited.share() >= 0.97


def test_lower_limit_is_learned_from_few_429s(new_limited: NewLimited) -> None:
    """test_rate_limit.py shows how few, with simulated time and every kind of window."""
    configured, real = 160, 40
    limited = new_limited(requests=200, limit=real, window_seconds=3)
    limited.backfill(configured)
    found = limited.note_rate_limited()
    assert 1 <= len(found) <= math.ceil(math.log2(configured / real)) + 1
    assert len(limited.asked_at) - 1 - found[-1] >= 2 * real, "and then none"
