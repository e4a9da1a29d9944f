"""Skip pages of a list that cannot be read, record the missing interval, and try them again later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from msgbubbles.errors import ApiError, is_unit_error
from msgbubbles.times import format_ms, to_epoch_ms

from .coverage import OPEN_END_MS, Coverage
from .failed_reads import FailedReads
from .state import FailedRead

# The steps in which a failed page is skipped grow by this factor, until the API answers below it.
SKIP_GROWTH = 4


class FailedPages:
    """The failed pages of one list. `fetch` requests the page before an ISO 8601 time."""

    def __init__(self, stream: str, fetch: Callable[[str | None], Any], failed: FailedReads) -> None:
        self._stream = stream
        self._fetch = fetch
        self._failed = failed

    def waiting(self) -> list[tuple[int, int]]:
        """Return the intervals of the failed pages that are not due to be tried again."""
        return [(lo_ms, hi_ms) for entry, lo_ms, hi_ms in self._all() if self._failed.is_waiting("page", entry.id)]

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
        for entry, lo_ms, hi_ms in list(self._all()):
            if (read.complete_to(lo_ms) or 0) >= hi_ms:
                self._failed.remove(entry)

    def _all(self) -> Iterator[tuple[FailedRead, int, int]]:
        for entry in self._failed.all("page"):
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
        with self._failed.few_attempts():
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
