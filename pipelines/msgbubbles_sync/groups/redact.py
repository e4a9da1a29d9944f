"""What the policy leaves of groups: what is planned, written down and landed, and who is behind it when it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec

from msgbubbles.client import Client
from msgbubbles.errors import ForbiddenError, PermanentError, RetryableError
from msgbubbles.models import Chat
from msgbubbles.policy import PSEUDONYM
from msgbubbles.private_client import build_client
from msgbubbles.redact import LeftOutChat, Redactor
from msgbubbles.tables import Table
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.policy.applied import build_redactor
from msgbubbles_sync.policy.vault import Vault
from msgbubbles_sync.tables import GROUP_OPERATIONS, GROUP_SIGHTINGS
from msgbubbles_sync.workspace import Workspace

from .ledger import Entry, Observation
from .model import DesiredGroup

Row = TypeVar("Row", Entry, Observation)


class GroupRedactor:
    """Groups as the policy lets them be known, and what is behind them.

    All that is compared, written down and landed is disguised; what is sent to the API is not. Who is behind a
    pseudonym is known from the desired table, from the API's own answers, and from the vault, where there is one.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._vault = redactor.vault
        # However quiet a group is, it is looked at.
        policy = msgspec.structs.replace(redactor.policy, thread_days=None, text_days=None)
        self._redactor = replace(redactor, policy=policy, vault=self)
        self._handles: dict[str, str] = {}
        self._titles: dict[str, str] = {}
        self._desired: dict[str, DesiredGroup] = {}

    @classmethod
    def of(cls, workspace: Workspace) -> GroupRedactor:
        """By the policy of a warehouse. Raises `UsageError` where that is not what its rows were landed by."""
        return cls(build_redactor(workspace))

    @property
    def hides(self) -> bool:
        """Whether a group is not written down as it is."""
        policy = self._redactor.policy
        return (policy.handles, policy.titles, policy.text) != ("keep", "keep", "keep")

    def client(self, client: Client) -> Client:
        """One that shows chats in disguise."""
        return build_client(client.transport, self._redactor)

    def add_own_numbers(self, handles: Iterable[str]) -> None:
        self._redactor.add_own_numbers(handles)

    def own_handle(self, written: str) -> str:
        """One of our own numbers."""
        return self._redactor.own_handle(written)

    def groups(self, desired: Sequence[DesiredGroup]) -> tuple[DesiredGroup, ...]:
        """Groups as they are compared and written down. Raises `UsageError` where somebody in them was erased."""
        erased = sum(map(self._has_erased, desired))
        if erased:
            raise UsageError(
                f"{erased:,} of the groups in the desired table have people in them who were erased from this "
                "warehouse: take these out of the table; nothing was sent"
            )
        groups = tuple(map(self._group, desired))
        self._desired |= {left.key: group for left, group in zip(groups, desired, strict=True)}
        self.save()
        return groups

    def _has_erased(self, group: DesiredGroup) -> bool:
        redactor = self._redactor
        return any(map(redactor.is_erased, group.addresses)) or any(
            text is not None and redactor.mentions_erased(text) for text in (group.title, group.message)
        )

    def _group(self, group: DesiredGroup) -> DesiredGroup:
        redactor = self._redactor
        title = None if group.title is None else redactor.title(group.title)
        if title is not None and group.title is not None:
            self._titles[title] = group.title
        return replace(
            group,
            # Without this the ledger, which is without them too, would not know the group by its key.
            key=redactor.without_erased(group.key),
            from_handle=redactor.own_handle(group.from_handle),
            addresses=tuple(sorted(map(redactor.handle, group.addresses))),
            title=title,
            message=redactor.text_mark(group.message),
        )

    def creation(self, entry: Entry) -> DesiredGroup | None:
        """The group that a creation is to bring about; null where the desired table has another one now."""
        said = DesiredGroup(
            entry.key or "", entry.from_handle or "", tuple(sorted(entry.handles)), entry.message or "", entry.title
        )
        if not self.hides:
            return said
        real = self._desired.get(said.key)
        return real if real is not None and self._group(real) == said else None

    def title(self, disguised: str) -> str | None:
        """The title; null where it is not in the desired table."""
        return disguised if self._redactor.policy.titles == "keep" else self._titles.get(disguised)

    def handle(self, disguised: str, client: Client, chat_id: str) -> str | None:
        """Who that is; null where nobody knows. Asks for the group where that may tell."""
        if self._redactor.policy.handles == "keep" or not PSEUDONYM.fullmatch(disguised):
            return disguised
        if disguised not in self._handles and isinstance(self._vault, Vault):
            found = self._vault.find_handle(disguised)
            self._handles |= {} if found is None else {disguised: found}
        if disguised not in self._handles:
            try:
                client.get_chat(chat_id)
            except (PermanentError, RetryableError, ForbiddenError):
                return None
        return self._handles.get(disguised)

    def shown(self, chat: Chat) -> Chat | None:
        """A chat as the answer to a write shows it, in disguise; null where the policy leaves it out."""
        seen = self._redactor.chat_by_id(chat)
        return None if isinstance(seen, LeftOutChat) else seen

    def quoted(self, said: str) -> str | None:
        """The API's own words, which may quote handles."""
        return None if self._redactor.policy.redacts else self._redactor.without_erased(said)

    # -- what the redactor tells

    def add(self, pseudonym: str, handle: str) -> None:
        self._handles[pseudonym] = handle
        if self._vault is not None:
            self._vault.add(pseudonym, handle)

    def save(self) -> None:
        if self._vault is not None:
            self._vault.save()


class PrivateLedger:
    """Rows of the ledger as they may land."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def entry(self, entry: Entry) -> Entry | None:
        """Null where the operation was about somebody who was erased, and nobody else."""
        handles = self._handles(entry.handles)
        if entry.handles and not handles:
            return None
        return replace(self._left(GROUP_OPERATIONS, entry), handles=handles)

    def observation(self, observation: Observation) -> Observation:
        handles = None if observation.handles is None else self._handles(observation.handles)
        return replace(self._left(GROUP_SIGHTINGS, observation), handles=handles)

    def _left(self, table: Table, row: Row) -> Row:
        """The row with each of its texts as the policy leaves it, by what the column holds."""
        left = {
            column.name: self._redactor.redact(column.pii, value)
            for column in table.columns
            if isinstance(value := getattr(row, column.name, None), str)
        }
        return replace(row, **left)

    def _handles(self, handles: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._redactor.handle(one) for one in handles if not self._redactor.is_erased(one))
