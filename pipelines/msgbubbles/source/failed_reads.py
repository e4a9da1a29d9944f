"""Record units that could not be read in the state of a resource, skip pages of a list, and try them again later.

A unit can fail without affecting anything else: the list of numbers, the feed, an interval of a list, a chat by id, the
messages of one chat. An error that makes the whole run impossible is raised: no connection, a stop, and, unless the API
answers another request, a refused key or a rate limit that does not reset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from msgbubbles.client import Client
from msgbubbles.errors import ApiError, AuthenticationError, RateLimitedError, is_unit_error
from msgbubbles.times import format_ms, to_epoch_ms

from .coverage import OPEN_END_MS, Coverage
from .state import FailedRead, Kind, ResourceState, is_waiting

if TYPE_CHECKING:
    from .run import Run

# Attempts of a request for a unit that failed before, or that follows one that has just failed.
ATTEMPTS_AFTER_A_FAILURE = 2
# After this many failures in a row, the API has to answer some other request, or the stream ends.
FAILURES_BEFORE_PROBE = 10
# The steps in which a failed page is skipped grow by this factor, until the API answers below it.
SKIP_GROWTH = 4


@dataclass
class Attempt:
    """`succeeded` is false once the unit has failed."""

    succeeded: bool = True


class FailedReads:
    """The failed reads in a resource's state, for one run."""

    def __init__(self, state: ResourceState, run: Run, client: Client) -> None:
        self._state = state
        self._run = run
        self._client = client
        self._entries = {(entry.kind, entry.id): entry for entry in state.failed_reads}

    def find_missing_from(self, kind: Kind, unit_id: str) -> int | None:
        """Return the time from which rows of a failed unit are missing; null if it has not failed."""
        entry = self._entries.get((kind, unit_id))
        return None if entry is None else entry.from_ms

    def is_waiting(self, kind: Kind, unit_id: str, from_ms: int | None = None) -> bool:
        """Return whether a unit failed and is not due yet. Rows from `from_ms` on are then read with the next try."""
        entry = self._entries.get((kind, unit_id))
        if entry is None:
            return False
        if from_ms is not None and entry.from_ms is not None and from_ms < entry.from_ms:
            self._save(msgspec.structs.replace(entry, from_ms=from_ms))
        if (kind, unit_id) in self._run.failed_now:
            return True
        return is_waiting(entry.tries, entry.last_tried_ms, to_epoch_ms(self._run.clock.now()))

    def list_all(self, kind: Kind) -> list[FailedRead]:
        return [entry for entry in self._entries.values() if entry.kind == kind]

    def list_due(self, kind: Kind) -> list[FailedRead]:
        """Return the failed units of a kind that are due to be tried again."""
        return [entry for entry in self.list_all(kind) if not self.is_waiting(kind, entry.id)]

    @contextmanager
    def attempt(self, kind: Kind, unit_id: str, from_ms: int | None = None) -> Iterator[Attempt]:
        """Record whether a unit fails or succeeds inside the block.

        Raises errors that do not concern only the unit, and the unit's error if the API answers nothing any more.
        """
        attempt = Attempt()
        is_suspect = (kind, unit_id) in self._entries or self._run.failures_in_a_row > 0
        try:
            with self.limit_attempts() if is_suspect else nullcontext():
                yield attempt
        except ApiError as error:
            if not (is_unit_error(error) or self._concerns_endpoint(error)):
                raise
            attempt.succeeded = False
            self.record(kind, unit_id, error, from_ms)
            self.check_api(error)
        else:
            self.note_answer()
            before = self._entries.get((kind, unit_id))
            if before is not None and (before.from_ms is None or (from_ms or 0) <= before.from_ms):
                self.remove(before)

    def limit_attempts(self) -> AbstractContextManager[None]:
        """Limit the attempts of each request, until the block ends."""
        return self._client.transport.at_most(ATTEMPTS_AFTER_A_FAILURE)

    def remove(self, entry: FailedRead) -> None:
        """Remove a unit that has been read."""
        del self._entries[entry.kind, entry.id]
        self._write()

    def record(self, kind: Kind, unit_id: str, error: ApiError, from_ms: int | None = None) -> None:
        """Record that a unit failed, or failed again."""
        before = self._entries.get((kind, unit_id))
        now_ms = to_epoch_ms(self._run.clock.now())
        missing_from = [at for at in (from_ms, before.from_ms if before else None) if at is not None]
        self._save(
            FailedRead(
                kind, unit_id, before.since_ms if before else now_ms, now_ms, before.tries + 1 if before else 1,
                error.status, error.code, min(missing_from, default=None),
            )
        )  # fmt: skip
        self._run.failed_now.add((kind, unit_id))

    def note_answer(self) -> None:
        """Reset the count of failures in a row."""
        self._run.failures_in_a_row = 0

    def check_api(self, error: ApiError) -> None:
        """Raise `error` if one unit after another fails because the API answers nothing."""
        self._run.failures_in_a_row += 1
        if self._run.failures_in_a_row % FAILURES_BEFORE_PROBE:
            return
        with self.limit_attempts():
            for request in (self._client.list_numbers, self._client.list_chats):
                with suppress(ApiError):
                    request()
                    return
        raise error

    def _concerns_endpoint(self, error: ApiError) -> bool:
        """Return whether only this endpoint refuses the key, or has a rate limit that does not reset."""
        if isinstance(error, AuthenticationError | RateLimitedError):
            with suppress(ApiError), self._client.transport.at_most(1, patience_seconds=0.0):
                self._client.list_chats()
                return True
        return False

    def _save(self, entry: FailedRead) -> None:
        self._entries[entry.kind, entry.id] = entry
        self._write()

    def _write(self) -> None:
        self._state.failed_reads = list(self._entries.values())
        self._run.failed_reads_changed = True


class FailedPages:
    """The failed pages of one list. `fetch` requests the page before an ISO 8601 time."""

    def __init__(self, stream: str, fetch: Callable[[str | None], Any], failed: FailedReads) -> None:
        self._stream = stream
        self._fetch = fetch
        self._failed = failed

    def list_waiting(self) -> list[tuple[int, int]]:
        """Return the intervals of the failed pages that are not due to be tried again."""
        return [(lo_ms, hi_ms) for entry, lo_ms, hi_ms in self._list_all() if self._failed.is_waiting("page", entry.id)]

    def skip(self, before: str | None, lo_ms: int, hi_ms: int | None, now_ms: int, error: ApiError) -> int:
        """Record the page before `before` as failed, in the interval from `lo_ms` to `hi_ms` (null: now).

        Return the time below which the interval can be read, at least `lo_ms`. Raises `error` if the API answers no
        page below either: then nothing of the list can be read.
        """
        below_ms = max(self._find_answer_below(before, now_ms, error), lo_ms)
        self._failed.record(
            "page", f"{self._stream} before {'now' if hi_ms is None else format_ms(hi_ms)}", error, below_ms
        )
        return below_ms

    def forget(self, read: Coverage) -> None:
        """Remove the failed pages whose interval has been read."""
        for entry, lo_ms, hi_ms in list(self._list_all()):
            if (read.complete_to(lo_ms) or 0) >= hi_ms:
                self._failed.remove(entry)

    def _list_all(self) -> Iterator[tuple[FailedRead, int, int]]:
        for entry in self._failed.list_all("page"):
            stream, _, before = entry.id.partition(" before ")
            if stream == self._stream and entry.from_ms is not None:
                yield (
                    entry,
                    entry.from_ms,
                    OPEN_END_MS if before == "now" else to_epoch_ms(datetime.fromisoformat(before)),
                )

    def _find_answer_below(self, before: str | None, now_ms: int, error: ApiError) -> int:
        """Return the newest time below a failed page for which the API answers.

        It is unknown how much time the page spans, so the skipped time grows until the API answers.
        """
        hi_ms = now_ms if before is None else to_epoch_ms(datetime.fromisoformat(before))
        skipped_ms = 1
        with self._failed.limit_attempts():
            while hi_ms - skipped_ms > 0:
                try:
                    self._fetch(format_ms(hi_ms - skipped_ms))
                except ApiError as again:
                    if not is_unit_error(again):
                        raise
                    self._failed.check_api(again)
                    skipped_ms *= SKIP_GROWTH
                else:
                    self._failed.note_answer()
                    return hi_ms - skipped_ms
        raise error
