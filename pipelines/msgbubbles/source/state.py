"""Type the state of the readers, which is JSON in dlt's resource state and commits together with the rows.

The state also travels with a published database. Times are milliseconds since 1970, by the API's clock unless noted
otherwise; 0 and null mean never.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import field

from msgbubbles.errors import ConfigurationError
from msgbubbles.times import DAY_MS, is_recent

from .coverage import CoveredInterval
from .paginate import Overflow

# Increase it when earlier releases cannot continue from this state or its tables, so that they refuse them.
STATE_VERSION = 2

# The next runs make these tries at once; a temporary fault has passed by then.
TRIES_WITHOUT_WAIT = 3
FIRST_WAIT_MS = 5 * 60 * 1000

Kind = Literal["numbers", "feed", "page", "thread", "chat", "participants"]
S = TypeVar("S", bound="_State")


class _State(msgspec.Struct, kw_only=True, omit_defaults=True):
    pass


class FailedRead(msgspec.Struct, frozen=True):
    """A unit that failed each time it was tried since `since_ms`. Times are by this machine's clock.

    Rows of the unit are missing from `from_ms` on, null if it has no time. `http_status` and `error_code` are those of
    the last answer, null without one.
    """

    kind: Kind
    id: str
    since_ms: int
    last_tried_ms: int
    tries: int
    http_status: int | None = None
    error_code: str | None = None
    from_ms: int | None = None


class RejectedInterval(msgspec.Struct, frozen=True, array_like=True):
    """An interval with rows that could not be read, and were read again `tries` times; `hashes` are theirs.

    It is one of the messages of a chat, or of the whole list.
    """

    lo_ms: int
    hi_ms: int
    last_tried_ms: int
    tries: int
    hashes: list[str]
    chat_id: str | None = None


def is_waiting(tries: int, last_tried_ms: int, now_ms: int) -> bool:
    """Return whether a unit is not tried again yet: it is at first, then after twice as long each time, up to a day."""
    waits = tries - TRIES_WITHOUT_WAIT
    return waits >= 0 and is_recent(last_tried_ms, now_ms, min(FIRST_WAIT_MS << min(waits, 16), DAY_MS))


class ResourceState(_State):
    """The state of every resource.

    `tables` are those that dlt was asked to create, with their columns; true in states of an old version. `complete` is
    the gap-free interval in `stream_coverage`.
    """

    tables: list[str] | bool = field(name="has_tables", default_factory=list)
    complete: tuple[int, int] | None = None
    failed_reads: list[FailedRead] = field(default_factory=list)


class NumbersState(_State):
    """`seen` are the fingerprints of the numbers that were read last."""

    seen: list[str] = field(default_factory=list)


class OverflowProgress(msgspec.Struct, array_like=True):
    """How many chats of a tie overflow were read: up to `after_id`. `is_stuck`: one could not be read completely."""

    after_id: str = ""
    is_stuck: bool = False
    is_over: bool = False


class ListState(_State):
    """The state of a list.

    Attributes:
        covered: Its coverage.
        seen: Fingerprints of the newest page at `seen_ms`, so that unchanged rows are not loaded again.
        overflows: Tie overflows that are neither repaired nor accepted.
        overflows_done: The progress of each overflow, by name.
        rejected: Intervals with rows that could not be read.
    """

    covered: list[CoveredInterval] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    seen_ms: int = 0
    overflows: list[Overflow] = field(default_factory=list)
    overflows_accepted: list[Overflow] = field(default_factory=list)
    overflows_done: dict[str, OverflowProgress] = field(default_factory=dict)
    rejected: list[RejectedInterval] = field(default_factory=list)


class MessagesState(_State):
    """The state of the messages, for each of the two ways to read them.

    `feed` is whether the API answers the account's feed, null while unknown. `feed_refused_ms` is when the API last
    refused it, by this machine's clock.
    """

    feed: bool | None = None
    feed_refused_ms: int | None = None
    by_feed: ListState = field(default_factory=ListState)
    by_thread: ListState = field(default_factory=ListState)

    @property
    def in_use(self) -> ListState:
        """The state of the way in which messages are read."""
        return self.by_feed if self.feed else self.by_thread


class ChatsState(ListState):
    """The state of the chats, and what has to be read by id.

    Attributes:
        missed: In how many sweeps a chat was missing, by id.
        threads: Chats whose messages have to be read again.
        lagging: Chats that were read because no message of their `last_message_at` was stored, with that time.
        lagging_tries: How often each of these was read for that time, and when last.
        lagging_in_vain: How many of those in a row brought nothing.
        read_for_events: The intervals that were read because events name messages in them, by chat.
        named_by_events: Chats that were asked for because events name them.
        head_swept_ms: When the newest page last counted as a sweep.
        timeless_asked_ms: When chats without a time were last asked for.
        participants_hidden_ms: When the API last showed no participants.
        participants_hidden: The groups that it was asked for, each time since it last showed some.
    """

    missed: dict[str, int] = field(default_factory=dict)
    threads: list[str] = field(default_factory=list)
    lagging: dict[str, int] = field(default_factory=dict)
    lagging_tries: dict[str, tuple[int, int]] = field(default_factory=dict)
    lagging_in_vain: int = 0
    read_for_events: dict[str, tuple[int, int]] = field(name="told", default_factory=dict)  # codespell:ignore told
    named_by_events: list[str] = field(default_factory=list)
    head_swept_ms: int = 0
    timeless_asked_ms: int = 0
    participants_hidden_ms: int | None = None
    participants_hidden: list[list[str]] = field(default_factory=list)


# The state that the reader of each stream adds to that of its resource.
STATES_BY_STREAM: dict[str, type[NumbersState | MessagesState | ChatsState]] = {
    "numbers": NumbersState,
    "messages": MessagesState,
    "chats": ChatsState,
}


@dataclass(frozen=True)
class States:
    """The states of all resources. `failed_reads` are sorted by kind and id; each unit counts once."""

    messages: MessagesState
    chats: ChatsState
    failed_reads: list[FailedRead]

    def get_list(self, stream: str) -> ListState:
        """Return the state of the list that a stream (chats or messages) is read from."""
        return self.chats if stream == "chats" else self.messages.in_use

    @classmethod
    def from_pipeline(cls, state: Mapping[str, Any]) -> States:
        """Decode the state of a dlt pipeline. Raises `ConfigurationError`."""
        return cls.from_resources(state.get("sources", {}).get("msgbubbles", {}).get("resources", {}))

    @classmethod
    def from_resources(cls, resources: Mapping[str, Any]) -> States:
        """Decode dlt's resource states, by name. Raises `ConfigurationError`."""
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
    """Decode one part of a resource's state. Raises `ConfigurationError` if this version cannot read it."""
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
    """Replace a resource's state by these parts, as JSON values."""
    resource.clear()
    resource["version"] = STATE_VERSION
    for part in parts:
        resource.update(msgspec.json.decode(msgspec.json.encode(part)))


def forget_fingerprints(resources: Iterable[dict[str, Any]]) -> None:
    """Remove the fingerprints of rows: with them and the id of a chat, one could find a number by trying."""
    for resource in resources:
        for part in (resource, resource.get("by_feed", {}), resource.get("by_thread", {})):
            part.pop("seen", None)
            part.pop("rejected", None)
