"""The words of this package: a group as it should be, as it is known to be, and an operation on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["create", "rename", "add", "remove"]

# The documented bounds: 2 to 31 addresses besides our own number, and 100 characters of title.
MIN_MEMBERS, MAX_MEMBERS, MAX_TITLE = 2, 31, 100


@dataclass(frozen=True)
class DesiredGroup:
    """A row of the desired table. `addresses` are sorted; without a title, the group's own is left alone. The message
    is sent once, when the group is created."""

    key: str
    from_handle: str
    addresses: tuple[str, ...]
    message: str
    title: str | None = None


@dataclass(frozen=True)
class Operation:
    """One request to the API, for the group with this key. `handles` are those who are added or removed, or all
    addresses of a creation, which alone has `from_handle` and `message`."""

    kind: Kind
    key: str
    handles: tuple[str, ...] = ()
    title: str | None = None
    from_handle: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class KnownGroup:
    """A group that has a key, as it is known: what the network confirmed to us, and what was read since. `members` are
    without our own number. `chat_id` is null while a creation has no verdict. `is_gone`: the API no longer has it."""

    key: str
    chat_id: str | None
    from_handle: str | None
    title: str | None
    members: frozenset[str]
    is_gone: bool = False

    def after(self, kind: Kind, handles: Iterable[str], title: str | None) -> KnownGroup:
        """The group once the network has said yes to a change."""
        if kind == "rename":
            return replace(self, title=title)
        if kind == "add":
            return replace(self, members=self.members | set(handles))
        if kind == "remove":
            return replace(self, members=self.members - set(handles))
        return replace(self, members=frozenset(handles), title=title)
