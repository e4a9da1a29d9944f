"""The rate limiter: which requests it admits, for whom, and which faults it survives."""

from __future__ import annotations

import json
import math
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.full_disk import full_disk
from helpers.process import PIPELINES, Process
from helpers.sizes import pick_size
from msgbubbles.rate_limit import WINDOW_SECONDS, RateLimiter

SECRET = "sk_live_secret_of_mine"  # noqa: S105 - nobody's


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Open = Callable[..., RateLimiter]


@pytest.fixture
def open_limiter(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """Return a function that opens the one record of this test, as another process would."""
    opened: list[RateLimiter] = []

    def open_it(limit: int = 5, **options: Any) -> RateLimiter:
        opened.append(RateLimiter(tmp_path / "budget", limit, **{"clock": clock, **options}))
        return opened[-1]

    yield open_it
    for rate_limiter in opened:
        rate_limiter.close()


def assert_no_window_has_more(times: list[float], limit: int, window_seconds: float) -> None:
    times = sorted(times)
    for first, beyond in zip(times, times[limit:], strict=False):
        assert beyond - first >= window_seconds, f"{limit + 1} requests in {beyond - first} s"


@settings(max_examples=pick_size(60, nightly=600))
@given(
    steps=st.lists(
        # Mostly short pauses, so that windows fill up.
        st.tuples(st.floats(0, 3) | st.floats(0, 100), st.integers(1, 8), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    limit=st.integers(1, 6),
)
def test_no_window_has_more_requests_than_allowed(steps: list[tuple[float, int, bool]], limit: int) -> None:
    clock, admitted = Clock(), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "budget"
        rate_limiter = RateLimiter(path, limit, window_seconds=60, clock=clock)
        for pause_seconds, tries, restart in steps:
            clock.now += pause_seconds
            if restart:
                rate_limiter.close()
                rate_limiter = RateLimiter(path, limit, window_seconds=60, clock=clock)
            for _ in range(tries):
                wait = rate_limiter.acquire()
                if wait:
                    clock.now += wait
                    # Tolerate the last bit of a float.
                    if (rest := rate_limiter.acquire()) > 0:
                        assert rest < 1e-6, "what it says to wait is enough"
                        clock.now += 1e-6
                        assert rate_limiter.acquire() == 0
                admitted.append(clock.now)
        rate_limiter.close()
    assert_no_window_has_more(admitted, limit, 60 - 1e-6)


def test_burst_is_allowed_and_the_next_request_waits(open_limiter: Open, clock: Clock) -> None:
    rate_limiter = open_limiter(5)
    waits = []
    for _ in range(5):
        waits.append(rate_limiter.acquire())
        clock.now += 1
    assert waits == [0.0] * 5
    assert rate_limiter.acquire() == pytest.approx(WINDOW_SECONDS - 5)
    assert rate_limiter.count_requests() == 5, "what was refused is not counted"
    clock.now += WINDOW_SECONDS - 5 + 0.5
    assert rate_limiter.acquire() == 0
    assert 0 < rate_limiter.acquire() <= 1, "one has left, not all"


def test_record_survives_a_restart(open_limiter: Open) -> None:
    first = open_limiter(3)
    assert [first.acquire() for _ in range(3)] == [0.0] * 3
    first.close()
    second = open_limiter(3)
    assert second.count_requests() == 3
    assert second.acquire() == pytest.approx(WINDOW_SECONDS)


def test_lowered_limit_counts_earlier_requests(open_limiter: Open, clock: Clock) -> None:
    for _ in range(5):
        assert open_limiter(5).acquire() == 0
        clock.now += 1
    assert open_limiter(2).acquire() == pytest.approx(WINDOW_SECONDS - 2), "the fourth has to leave the window"


SPEND = """
import json, sys, time
from pathlib import Path
from msgbubbles.rate_limit import RateLimiter

budget = RateLimiter(Path(sys.argv[1]), 20, window_seconds=0.8)
print("ready", flush=True)
sys.stdin.readline()
end, times = time.monotonic() + 2, []
while time.monotonic() < end:
    if budget.acquire() == 0:
        times.append(time.time())
print(json.dumps(times))
"""


@pytest.mark.slow
def test_processes_share_the_limit(tmp_path: Path) -> None:
    processes = [
        Process(
            [sys.executable, "-c", SPEND, str(tmp_path / "budget")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PIPELINES,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    began = time.time()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    times = [at for process in processes for at in json.loads(process.communicate(timeout=20)[0])]
    assert [process.returncode for process in processes] == [0, 0, 0]
    # It counts the time of the call; the caller sees the result later, much later on a busy machine.
    windows = (max(times) - began) / 0.8
    assert 20 < len(times) <= 20 * (int(windows) + 1), "more than one window, and no more than each may have"


def test_requests_sent_during_a_wait_are_not_in_the_future(tmp_path: Path, open_limiter: Open, clock: Clock) -> None:
    rate_limiter = open_limiter(1)
    with closing(sqlite3.connect(tmp_path / "budget", isolation_level=None)) as other, ThreadPoolExecutor() as pool:
        other.execute("BEGIN IMMEDIATE")
        waiting = pool.submit(rate_limiter.acquire)
        time.sleep(0.3)
        clock.now += 5
        other.execute("INSERT INTO requests VALUES (?)", (clock.now,))
        other.execute("COMMIT")
        assert waiting.result() == pytest.approx(WINDOW_SECONDS)
    assert rate_limiter.acquire() == pytest.approx(WINDOW_SECONDS), (
        "the other's request still counts for a whole window"
    )


def test_clock_set_back_neither_blocks_nor_frees_the_window(open_limiter: Open, clock: Clock) -> None:
    rate_limiter = open_limiter(3)
    for _ in range(3):
        rate_limiter.acquire()
    rate_limiter.note_rate_limited(3000)
    clock.now -= 500_000
    assert 0 < rate_limiter.acquire() <= WINDOW_SECONDS, "those three may have been sent a moment ago"
    clock.now += WINDOW_SECONDS + 0.001
    assert rate_limiter.acquire() == 0


def test_clock_set_back_a_little_frees_nothing(open_limiter: Open, clock: Clock) -> None:
    rate_limiter = open_limiter(3)
    for _ in range(3):
        assert rate_limiter.acquire() == 0
        clock.now -= 5
    assert rate_limiter.acquire() > 0


def test_clock_set_forward_does_not_block(open_limiter: Open, clock: Clock) -> None:
    rate_limiter = open_limiter(1)
    rate_limiter.acquire()
    clock.now += 500_000
    assert rate_limiter.acquire() == 0


def test_429_closes_the_window_for_all_processes(open_limiter: Open, clock: Clock) -> None:
    one, other = open_limiter(100), open_limiter(100)
    one.note_rate_limited(20)
    one.note_rate_limited(5)
    assert other.acquire() == pytest.approx(20), "the longer one counts"
    assert one.acquire() == pytest.approx(20)
    assert open_limiter(100).acquire() == pytest.approx(20), "and it survives a restart"
    assert one.count_requests() == 0
    clock.now += 20.5
    assert (one.acquire(), other.acquire()) == (0, 0)


class Limiter:
    """An API that admits `limit` requests a minute, by clock minutes or in any minute."""

    def __init__(self, limit: int, window: str) -> None:
        self.limit = limit
        self.window = window
        self.taken: list[float] = []

    def refusal(self, now: float) -> float | None:
        """Admit a request and return null, or return the seconds until the next try."""
        since = now - now % 60 if self.window == "fixed" else now - 60
        self.taken = [at for at in self.taken if at > since]
        if len(self.taken) < self.limit:
            self.taken.append(now)
            return None
        return int((since if self.window == "fixed" else self.taken[0]) + 60 - now) + 1.0


@pytest.mark.parametrize("begin_seconds", [0, 20, 59.9])
@pytest.mark.parametrize("request_seconds", [0.005, 0.15, 0.4])
@pytest.mark.parametrize("says_how_long", [True, False])
@pytest.mark.parametrize("window", ["fixed", "rolling"])
@pytest.mark.parametrize("real", [25, 40, 70, 100])
def test_lower_limit_is_learned_from_few_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    real: int,
    window: str,
    says_how_long: bool,
    request_seconds: float,
    begin_seconds: float,
) -> None:
    """A 429 halves the limit, or lowers it to the number of admitted requests, if that is more.

    It may take one more if a minute of the API ends while requests are sent: then twice its limit was admitted.
    """
    configured = 120
    monkeypatch.chdir(tmp_path)
    # SQLite's name for a database in memory: with a file, these cases take three times as long.
    rate_limiter, api = RateLimiter(Path(":memory:"), configured, clock=clock), Limiter(real, window)
    clock.now = 1_000_020.0 + begin_seconds
    begin, sent, refused = clock.now, list[float](), list[float]()
    while clock.now < begin + 540:
        if wait := rate_limiter.acquire():
            clock.now += wait + 0.001
            continue
        clock.now += request_seconds
        seconds = api.refusal(clock.now)
        if seconds is None:
            sent.append(clock.now)
            continue
        refused.append(clock.now)
        rate_limiter.note_rate_limited(seconds if says_how_long else WINDOW_SECONDS)
    assert 0 < len(refused) <= math.ceil(math.log2(configured / real)) + 1
    assert refused[-1] < begin + 240
    assert len([at for at in sent if at > begin + 300]) >= 3 * real / 2, "no less than half of what is allowed"
    rate_limiter.close()


def test_429_halves_the_limit_at_most(open_limiter: Open) -> None:
    rate_limiter = open_limiter(100)
    for _ in range(10):
        assert rate_limiter.acquire() == 0
    rate_limiter.note_rate_limited(20)
    assert rate_limiter.limit == 50, "the other requests of the window may be those of another program"


def test_two_429s_in_flight_lower_the_limit_once(open_limiter: Open, clock: Clock) -> None:
    one, other = open_limiter(100), open_limiter(100)
    for _ in range(31):
        assert one.acquire() == 0
        assert other.acquire() == 0
    one.note_rate_limited(20)
    assert one.limit == 61
    clock.now += 0.1
    other.note_rate_limited(20)
    assert one.limit == 61


def test_window_is_closed_for_an_hour_at_most(open_limiter: Open) -> None:
    rate_limiter = open_limiter()
    rate_limiter.note_rate_limited(10**9)
    assert rate_limiter.acquire() == pytest.approx(3600)


def test_each_key_has_its_own_file_that_does_not_name_it(tmp_path: Path) -> None:
    one, other = (RateLimiter.for_key(key, 1, tmp_path) for key in (SECRET, "another"))
    assert (one.acquire(), other.acquire()) == (0, 0)
    assert one.acquire() > 0
    again = RateLimiter.for_key(SECRET, 1, str(tmp_path))
    assert again.acquire() > 0
    for rate_limiter in (one, other, again):
        rate_limiter.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    for file in files:
        assert SECRET[-8:] not in file.name
        assert SECRET.encode() not in file.read_bytes()


def test_record_is_readable_only_by_its_user(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    for folder in (tmp_path / "new", tmp_path / "shared"):
        rate_limiter = RateLimiter.for_key(SECRET, 1, folder)
        rate_limiter.acquire()
        rate_limiter.close()
        assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o600]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_full_disk_limits_the_requests_of_this_process_alone(
    tmp_path: Path, open_limiter: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    rate_limiter, unwritable = open_limiter(1), RateLimiter.for_key(SECRET, 1)
    named = RateLimiter.for_key(SECRET, 1, tmp_path / "file" / "folder")
    with closing(unwritable), closing(named), full_disk():
        for limiter in (rate_limiter, unwritable, named):
            assert limiter.acquire() == 0
            assert limiter.acquire() > 0
    assert len([record for record in caplog.records if "counts its own requests only" in record.message]) == 3


def test_record_that_cannot_be_used_is_replaced(tmp_path: Path, open_limiter: Open) -> None:
    (tmp_path / "budget" / "of somebody").mkdir(parents=True)
    assert open_limiter(1).acquire() == 0
    (tmp_path / "budget").unlink()
    (tmp_path / "budget").symlink_to("/nowhere/at/all")
    assert open_limiter(1).acquire() == 0
    assert open_limiter(1).acquire() > 0


@pytest.mark.parametrize("torn", [b"not a database, but long enough" * 50, b"SQLite format 3\0" + b"\xff" * 5000])
def test_damaged_file_is_replaced(tmp_path: Path, open_limiter: Open, torn: bytes) -> None:
    (tmp_path / "budget").write_bytes(torn)
    rate_limiter = open_limiter(1)
    assert rate_limiter.acquire() == 0
    assert rate_limiter.acquire() > 0
