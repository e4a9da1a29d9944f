"""Keep requests in flight while earlier pages are processed."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from msgbubbles.settings import DEFAULTS

A = TypeVar("A")

# A client has this many connections to one host.
MAX_WORKERS = DEFAULTS.parallel_requests
# One worker is enough up to this share of the rate limit: it still makes up for the pauses during loads.
SHARE_OF_ONE_WORKER = 0.7
# Assumed when there is no rate limit.
UNKNOWN_LIMIT_PER_MINUTE = 1200


def count_workers(requests_per_minute: int, latency_seconds: float) -> int:
    """Return how many workers it takes to use up the rate limit (0: none) at this latency.

    Twice as many as strictly needed, because all of them pause during a load.
    """
    needed = (requests_per_minute or UNKNOWN_LIMIT_PER_MINUTE) / 60 * latency_seconds
    return 1 if needed <= SHARE_OF_ONE_WORKER else min(math.ceil(2 * needed), MAX_WORKERS)


class InFlight(Generic[A]):
    """Requests that were sent and not answered yet, each with its sender. Here each runs when its answer is wanted."""

    def __init__(self) -> None:
        self._asked: list[tuple[Any, Callable[[], A]]] = []

    def ask(self, sender: Any, request: Callable[[], A]) -> None:
        self._asked.append((sender, request))

    def answer(self) -> tuple[Any, Callable[[], A]]:
        """Return the next answer from any sender; calling it raises what the request raised."""
        return self._asked.pop(0)

    def close(self) -> None:
        """Wait for the outstanding requests, and ignore their answers."""
        self._asked.clear()


class InThreads(InFlight[A]):
    """Runs each request in its own thread."""

    def __init__(self) -> None:
        super().__init__()
        self._threads = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="page")
        self._answered: SimpleQueue[tuple[Any, Future[A]]] = SimpleQueue()

    def ask(self, sender: Any, request: Callable[[], A]) -> None:
        self._threads.submit(request).add_done_callback(lambda future: self._answered.put((sender, future)))

    def answer(self) -> tuple[Any, Callable[[], A]]:
        sender, future = self._answered.get()
        return sender, future.result

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
