"""An in-memory model of a list endpoint. Behaviour that the API leaves undocumented is configurable."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from msgbubbles.models import Chat, Page

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Listing:
    """Rows by id, each with its time in microseconds (returned in milliseconds) or None.

    `shown_as` has the rows that return another time than the one by which they are sorted.
    """

    rows: dict[str, int | None]
    limit: int = 5
    inclusive: bool = False
    unstable_ties: bool = False
    shuffled_pages: bool = False
    short_pages: bool = False
    nulls_first: bool = True
    nulls_with_before: bool = False
    seed: int = 0
    shown_as: dict[str, int | None] = field(default_factory=dict)
    after_request: Callable[[Listing], None] = lambda _listing: None
    asked: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def fetch(self, before: str | None) -> Page[Chat]:
        self.asked.append(before)
        before_us = None if before is None else (datetime.fromisoformat(before) - EPOCH) // timedelta(microseconds=1)
        timed = [(at, key) for key, at in self.rows.items() if at is not None and self._is_before(at, before_us)]
        order = {key: (self.random.random() if self.unstable_ties else key) for _, key in timed}
        timed.sort(key=lambda row: (-row[0], order[row[1]]))
        nulls: list[tuple[int | None, str]] = []
        if before is None or self.nulls_with_before:
            nulls = sorted((None, key) for key, at in self.rows.items() if at is None)
        found = [*nulls, *timed] if self.nulls_first else [*timed, *nulls]
        size = self.random.randint(1, self.limit) if self.short_pages else self.limit
        taken = found[:size]
        if self.shuffled_pages:
            self.random.shuffle(taken)
        page = Page(
            rows=[Chat(id=key, last_message_at=shown(self.shown_as.get(key, at))) for at, key in taken],
            rejected=[],
            has_more=len(found) > size,
            full=size == self.limit and len(taken) == size,
            fetched_at=datetime.now(UTC),
            server_at=datetime.now(UTC),
        )
        self.after_request(self)
        return page

    def _is_before(self, at: int, before_us: int | None) -> bool:
        return before_us is None or at < before_us or (self.inclusive and at == before_us)


def shown(at_us: int | None) -> datetime | None:
    return None if at_us is None else EPOCH + timedelta(milliseconds=at_us // 1000)
