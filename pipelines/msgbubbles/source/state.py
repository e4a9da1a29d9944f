"""What the readers remember between runs: typed here, JSON in dlt's resource state, which commits with the rows.

The state also travels with a published database. Times are milliseconds since 1970, by the API's clock unless they say
otherwise; 0 and null stand for never.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import field

from msgbubbles.errors import ConfigurationError
from msgbubbles.times import DAY_MS

from .coverage import CoveredInterval

# Count it up when the releases before cannot go on with this state, or with the tables beside it: they refuse both.
STATE_VERSION = 2

# A fault that passes by itself has passed by one of these tries, which the next runs make.
TRIES_WITHOUT_WAIT = 3
FIRST_WAIT_MS = 5 * 60 * 1000

Kind = Literal["numbers", "feed", "page", "thread", "chat", "participants"]
S = TypeVar("S", bound="_State")


class _State(msgspec.Struct, kw_only=True, omit_defaults=True):
    pass


class FailedRead(msgspec.Struct, frozen=True):
    """One unit that failed whenever it was tried since `since_ms`. Times are by this machine's clock. `from_ms`: the
    time from which rows of the unit are missing, null where it has no time. `http_status` and `error_code` are of the
    last answer, null where there was none.
    """

    kind: Kind
    id: str
    since_ms: int
    last_tried_ms: int
    tries: int
    http_status: int | None = None
    error_code: str | None = None
    from_ms: int | None = None

    @property
    def next_try_ms(self) -> int:
        """Return the earliest time of the next try: at once at first, then after twice as long each time, up to a
        day.
        """
        waits = self.tries - TRIES_WITHOUT_WAIT
        return self.last_tried_ms + (0 if waits < 0 else min(FIRST_WAIT_MS << min(waits, 16), DAY_MS))


class ResourceState(_State):
    """What every resource remembers. `tables`: those that dlt was told to create, with their columns; true in states of
    an old version. `complete`: the interval without a gap that `stream_coverage` shows.
    """

    tables: list[str] | bool = field(name="has_tables", default_factory=list)
    complete: tuple[int, int] | None = None
    failed_reads: list[FailedRead] = field(default_factory=list)


class NumbersState(_State):
    """`seen`: fingerprints of the numbers as they were read last."""

    seen: list[str] = field(default_factory=list)


class OverflowProgress(msgspec.Struct, array_like=True):
    """How far the chats of a tie overflow have been read: up to `after_id`. `is_stuck`: one of them could not be read
    completely.
    """

    after_id: str = ""
    is_stuck: bool = False
    is_over: bool = False


class ListState(_State):
    """What was read of a list. `covered` is its coverage; `seen` are fingerprints of the newest page at `seen_ms`, so
    that what has not changed is not loaded again. `overflows` are tie overflows (first and last time) that are neither
    repaired nor accepted, `overflows_done` how far each of them has been read, by name.
    """

    covered: list[CoveredInterval] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    seen_ms: int = 0
    overflows: list[tuple[int | None, int | None]] = field(default_factory=list)
    overflows_accepted: list[tuple[int | None, int | None]] = field(default_factory=list)
    overflows_done: dict[str, OverflowProgress] = field(default_factory=dict)


class MessagesState(_State):
    """What was read of the messages, in each of the two ways. `feed`: whether the API answers the account's feed, null
    while that is not known; `feed_refused_ms`: when it refused it last, by this machine's clock.
    """

    feed: bool | None = None
    feed_refused_ms: int | None = None
    by_feed: ListState = field(default_factory=ListState)
    by_thread: ListState = field(default_factory=ListState)

    @property
    def in_use(self) -> ListState:
        """Return the state of the way in which messages are read."""
        return self.by_feed if self.feed else self.by_thread


class ChatsState(ListState):
    """What was read of the chats, and what has to be read by id.

    `missed` counts, by id, the sweeps that did not show a chat. `threads`: chats whose messages are to be read again.
    `lagging`: chats that were read because no message of their `last_message_at` was stored, with that time;
    `lagging_in_vain`: how many of them in a row brought nothing. `read_for_events`: the intervals that were read
    because events name messages in them, by chat. `named_by_events`: chats that were asked for because events name
    them. The others are times: of the last sweep of the newest page, of the last question for chats without a time,
    and when the API showed no participants.
    """

    missed: dict[str, int] = field(default_factory=dict)
    threads: list[str] = field(default_factory=list)
    lagging: dict[str, int] = field(default_factory=dict)
    lagging_in_vain: int = 0
    read_for_events: dict[str, tuple[int, int]] = field(name="told", default_factory=dict)
    named_by_events: list[str] = field(default_factory=list)
    head_swept_ms: int = 0
    timeless_asked_ms: int = 0
    participants_hidden_ms: int | None = None


@dataclass(frozen=True)
class States:
    """The states of all resources. `failed_reads` are in the order of kind and id; what failed in two resources counts
    once.
    """

    messages: MessagesState
    chats: ChatsState
    failed_reads: list[FailedRead]

    def of_list(self, stream: str) -> ListState:
        """Return the state of the list that a stream, chats or messages, is read from."""
        return self.chats if stream == "chats" else self.messages.in_use

    @classmethod
    def from_resources(cls, resources: Mapping[str, Any]) -> States:
        """Decode dlt's states of the resources, by name. Raises `ConfigurationError`."""
        failed = {
            (entry.kind, entry.id): entry
            for resource in resources.values()
            for entry in decode(resource, ResourceState).failed_reads
        }
        return cls(
            decode(resources.get("messages", {}), MessagesState),
            decode(resources.get("chats", {}), ChatsState),
            [failed[key] for key in sorted(failed)],
        )


def decode(resource: Mapping[str, Any], kind: type[S]) -> S:
    """Decode one part of a resource's state. Raises `ConfigurationError` where this version cannot read it."""
    version = resource.get("version", STATE_VERSION)
    if not isinstance(version, int) or version > STATE_VERSION:
        raise ConfigurationError(
            f"this warehouse was written by a newer version of this project (its state has version {version}, this one "
            f"reads up to {STATE_VERSION}): upgrade, or choose another --database; nothing was changed"
        )
    try:
        return msgspec.convert(resource, kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"the state of this warehouse is damaged ({error}): restore the database from a backup, or choose another "
            "--database; nothing was changed"
        ) from None


def encode(resource: MutableMapping[str, Any], *parts: _State) -> None:
    """Write the parts of a resource's state into it, as JSON would hold them."""
    resource.clear()
    resource["version"] = STATE_VERSION
    for part in parts:
        resource.update(msgspec.json.decode(msgspec.json.encode(part)))


def forget_fingerprints(resources: Iterable[dict[str, Any]]) -> None:
    """Remove the fingerprints of rows from resources' states: who has the id of a chat could try numbers."""
    for resource in resources:
        for part in (resource, resource.get("by_feed", {}), resource.get("by_thread", {})):
            part.pop("seen", None)
