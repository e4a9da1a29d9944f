"""Requests that are under way while the pages that came before them are dealt with."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from msgbubbles.settings import DEFAULTS

A = TypeVar("A")

# As many as a client keeps connections to one host.
MOST_WALKS = DEFAULTS.parallel_requests
# One walk makes a request after another: this much of the limit, and pauses for loads are made up for.
SHARE_OF_ONE_WALK = 0.7
# A limit that is not known is taken for this one.
UNKNOWN_LIMIT_PER_MINUTE = 1200


def walks_at_once(requests_per_minute: int, latency_seconds: float) -> int:
    """How many walks it takes to use what may be asked, when an answer takes so long; `requests_per_minute` is 0 where
    nobody counts. Twice as many as would just do, because a load is a pause for all of them.
    """
    needed = (requests_per_minute or UNKNOWN_LIMIT_PER_MINUTE) / 60 * latency_seconds
    return 1 if needed <= SHARE_OF_ONE_WALK else min(math.ceil(2 * needed), MOST_WALKS)


class InFlight(Protocol[A]):
    """Questions that were asked and are not answered yet, by who asked."""

    def ask(self, who: Any, question: Callable[[], A]) -> None: ...

    def answer(self) -> tuple[Any, Callable[[], A]]:
        """The next answer that comes, of whoever it is; to call it raises what the question raised."""

    def close(self) -> None:
        """What was asked is answered, and not looked at."""


class InThreads(Generic[A]):
    """Each question in a thread of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST_WALKS, thread_name_prefix="page")
        self._answered: SimpleQueue[tuple[Any, Future[A]]] = SimpleQueue()

    def ask(self, who: Any, question: Callable[[], A]) -> None:
        self._threads.submit(question).add_done_callback(lambda future: self._answered.put((who, future)))

    def answer(self) -> tuple[Any, Callable[[], A]]:
        who, future = self._answered.get()
        return who, future.result

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class OneByOne(Generic[A]):
    """A question is put when its answer is wanted, and not before."""

    def __init__(self) -> None:
        self._asked: list[tuple[Any, Callable[[], A]]] = []

    def ask(self, who: Any, question: Callable[[], A]) -> None:
        self._asked.append((who, question))

    def answer(self) -> tuple[Any, Callable[[], A]]:
        return self._asked.pop(0)

    def close(self) -> None:
        self._asked.clear()
