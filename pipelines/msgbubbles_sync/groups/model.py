"""Desired groups, observed groups, and operations on them."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from msgbubbles.handles import fold_handle

Kind = Literal["create", "rename", "add", "remove"]

# The API's documented limits; the account's own number is not counted.
MIN_MEMBERS, MAX_MEMBERS, MAX_TITLE = 2, 31, 100
VARIATION_SELECTORS = frozenset("\ufe0e\ufe0f")


@dataclass(frozen=True)
class DesiredGroup:
    """A row of the desired table.

    `addresses` are sorted. A group without a title keeps the one it has. The message is sent once, on creation.
    """

    key: str
    from_handle: str
    addresses: tuple[str, ...]
    message: str
    title: str | None = None


@dataclass(frozen=True)
class Operation:
    """One request to the API, for the group with this key.

    `handles` are the people to add or remove, or all addresses of a creation. Only a creation has `from_handle` and
    `message`.
    """

    kind: Kind
    key: str
    handles: tuple[str, ...] = ()
    title: str | None = None
    from_handle: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class ObservedGroup:
    """The state of a group that has a key, by what the network confirmed and what was read since.

    `members` does not include our own number. `chat_id` is null while the outcome of the creation is unknown.
    `is_gone`: the API no longer has the group.
    """

    key: str
    chat_id: str | None
    from_handle: str | None
    title: str | None
    members: frozenset[str]
    is_gone: bool = False

    def after(self, kind: Kind, handles: Iterable[str], title: str | None) -> ObservedGroup:
        """Return the group after a change that the network confirmed."""
        if kind == "rename":
            return replace(self, title=title)
        if kind == "create":
            return replace(self, members=frozenset(handles), title=title)
        if kind == "remove":
            removed = {fold_handle(handle) for handle in handles}
            return replace(
                self, members=frozenset(handle for handle in self.members if fold_handle(handle) not in removed)
            )
        before = {fold_handle(handle) for handle in self.members}
        return replace(self, members=self.members | {handle for handle in handles if fold_handle(handle) not in before})


def fold_title(title: str | None) -> str:
    """Return a form that is equal for all spellings in which a network may store a title.

    Characters are composed, HTML entities decoded, runs of spaces one space, invisible characters and spaces at the
    ends removed, and the result cut at 100 characters.
    """
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(title or "")))
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf" and char not in VARIATION_SELECTORS)
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", visible).strip()[:MAX_TITLE].rstrip()
