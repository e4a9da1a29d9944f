"""The words of this package: a group as it should be, as it is known to be, and an operation on it."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from msgbubbles.handles import fold_handle

Kind = Literal["create", "rename", "add", "remove"]

# The documented bounds: 2 to 31 addresses besides our own number, and 100 characters of title.
MIN_MEMBERS, MAX_MEMBERS, MAX_TITLE = 2, 31, 100
VARIATION_SELECTORS = frozenset("\ufe0e\ufe0f")


@dataclass(frozen=True)
class DesiredGroup:
    """A row of the desired table. `addresses` are sorted; without a title, the group's own is left alone. The message
    is sent once, when the group is created.
    """

    key: str
    from_handle: str
    addresses: tuple[str, ...]
    message: str
    title: str | None = None


@dataclass(frozen=True)
class Operation:
    """One request to the API, for the group with this key. `handles` are those who are added or removed, or all
    addresses of a creation, which alone has `from_handle` and `message`.
    """

    kind: Kind
    key: str
    handles: tuple[str, ...] = ()
    title: str | None = None
    from_handle: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class ObservedGroup:
    """A group that has a key, as it is known: what the network confirmed to us, and what was read since. `members` are
    without our own number. `chat_id` is null while a creation has no verdict. `is_gone`: the API no longer has it.
    """

    key: str
    chat_id: str | None
    from_handle: str | None
    title: str | None
    members: frozenset[str]
    is_gone: bool = False

    def after(self, kind: Kind, handles: Iterable[str], title: str | None) -> ObservedGroup:
        """The group once the network has said yes to a change."""
        if kind == "rename":
            return replace(self, title=title)
        folded = {fold_handle(one) for one in handles}
        if kind == "add":
            there = {fold_handle(one) for one in self.members}
            return replace(self, members=self.members | {one for one in handles if fold_handle(one) not in there})
        if kind == "remove":
            return replace(self, members=frozenset(one for one in self.members if fold_handle(one) not in folded))
        return replace(self, members=frozenset(handles), title=title)


def fold_title(title: str | None) -> str:
    """Return a form that is equal for all spellings in which a network may store a title: composed characters, `&` or
    `&amp;`, spaces as one, none around it, nothing that cannot be seen, and no more than 100 characters.
    """
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(title or "")))
    seen = "".join(one for one in text if unicodedata.category(one) != "Cf" and one not in VARIATION_SELECTORS)
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", seen).strip()[:MAX_TITLE].rstrip()
