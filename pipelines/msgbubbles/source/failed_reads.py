"""Units that could not be read: kept in the state of a resource, tried again later, and shown to people.

A unit is what can fail alone: the list of numbers, the feed, an interval of a list, a chat by id, the messages of one
chat. Its failure ends nothing else. What makes the whole run impossible is no unit's failure and is raised: a refused
key, no connection, a rate limit that does not reset, a stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from msgbubbles.client import Client
from msgbubbles.errors import ApiError, is_unit_error
from msgbubbles.times import to_epoch_ms

from .state import FailedRead, Kind, ResourceState

if TYPE_CHECKING:
    from .run import Run

# Requests for a unit that failed before, or that follows one that has just failed.
TRIES_AFTER_A_FAILURE = 2
# After so many failures in a row, the API shows once that it still answers, or the stream ends.
FAILURES_BEFORE_PROBE = 10


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

    def missing_from(self, kind: Kind, unit_id: str) -> int | None:
        """The time from which rows of a failed unit are missing; null where it has not failed."""
        entry = self._entries.get((kind, unit_id))
        return None if entry is None else entry.from_ms

    def is_waiting(self, kind: Kind, unit_id: str, from_ms: int | None = None) -> bool:
        """Whether a unit failed and is not to be tried now. `from_ms`: what would have been read now is read then."""
        entry = self._entries.get((kind, unit_id))
        if entry is None:
            return False
        if from_ms is not None and entry.from_ms is not None and from_ms < entry.from_ms:
            self._save(msgspec.structs.replace(entry, from_ms=from_ms))
        return (kind, unit_id) in self._run.failed_now or entry.next_try_ms > to_epoch_ms(self._run.clock.now())

    def all(self, kind: Kind) -> list[FailedRead]:
        """The failed units of a kind."""
        return [entry for entry in self._entries.values() if entry.kind == kind]

    def due(self, kind: Kind) -> list[FailedRead]:
        """The failed units of a kind that are to be tried now."""
        return [entry for entry in self.all(kind) if not self.is_waiting(kind, entry.id)]

    @contextmanager
    def attempt(self, kind: Kind, unit_id: str, from_ms: int | None = None) -> Iterator[Attempt]:
        """Record what goes wrong with one unit inside the block, or that it succeeds now. Raises what is not about the
        unit, and the unit's error where the API does not answer at all any more.
        """
        attempt = Attempt()
        is_suspect = (kind, unit_id) in self._entries or self._run.failures_in_a_row > 0
        try:
            with self.few_tries() if is_suspect else nullcontext():
                yield attempt
        except ApiError as error:
            if not is_unit_error(error):
                raise
            attempt.succeeded = False
            self.record(kind, unit_id, error, from_ms)
            self.check_api(error)
        else:
            self.note_answer()
            before = self._entries.get((kind, unit_id))
            if before is not None and (before.from_ms is None or (from_ms or 0) <= before.from_ms):
                self.remove(before)

    def few_tries(self) -> AbstractContextManager[None]:
        """Until the block ends, requests are tried as often as those for units that failed before."""
        return self._client.transport.at_most(TRIES_AFTER_A_FAILURE)

    def remove(self, entry: FailedRead) -> None:
        """Forget a unit, which has been read."""
        del self._entries[entry.kind, entry.id]
        self._write()

    def record(self, kind: Kind, unit_id: str, error: ApiError, from_ms: int | None = None) -> None:
        """Record that a unit failed, or failed again."""
        before = self._entries.get((kind, unit_id))
        now_ms = to_epoch_ms(self._run.clock.now())
        missing_from = [one for one in (from_ms, before.from_ms if before else None) if one is not None]
        self._save(
            FailedRead(
                kind, unit_id, before.since_ms if before else now_ms, now_ms, before.tries + 1 if before else 1,
                error.status, error.code, min(missing_from, default=None),
            )
        )  # fmt: skip
        self._run.failed_now.add((kind, unit_id))

    def note_answer(self) -> None:
        """The API has answered: what fails next is the first failure in a row."""
        self._run.failures_in_a_row = 0

    def check_api(self, error: ApiError) -> None:
        """Raise `error` where one unit after another fails because the API answers nothing."""
        self._run.failures_in_a_row += 1
        if self._run.failures_in_a_row % FAILURES_BEFORE_PROBE:
            return
        with self.few_tries():
            for request in (self._client.list_numbers, self._client.list_chats):
                with suppress(ApiError):
                    request()
                    return
        raise error

    def _save(self, entry: FailedRead) -> None:
        self._entries[entry.kind, entry.id] = entry
        self._write()

    def _write(self) -> None:
        self._state.failed_reads = list(self._entries.values())
        self._run.failed_reads_changed = True
