"""Apply the privacy policy to groups before they are planned, recorded and loaded, and reverse it for requests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec

from msgbubbles.client import Client
from msgbubbles.errors import SKIPPABLE_ERRORS
from msgbubbles.models import Chat
from msgbubbles.policy import PSEUDONYM
from msgbubbles.private_client import build_client
from msgbubbles.redact import ExcludedChat, Redactor
from msgbubbles.tables import Table
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.policy.vault import Vault

from .ledger import Entry, Row
from .model import DesiredGroup


class GroupRedactor:
    """Replaces handles, titles and messages of groups by the policy, and reveals them for requests.

    Only pseudonyms are compared, recorded and loaded; requests have the real values. These come from the desired table,
    the API's answers, and the vault, if there is one. `redactor` replaces single values.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._vault = redactor.vault
        # A group is never left out for being quiet.
        policy = msgspec.structs.replace(redactor.policy, thread_days=None, text_days=None)
        self.redactor = replace(redactor, policy=policy, vault=self)
        self._handles: dict[str, str] = {}
        self._titles: dict[str, str] = {}
        self._desired: dict[str, DesiredGroup] = {}

    @property
    def is_redacting(self) -> bool:
        """Whether the policy changes how groups are recorded."""
        policy = self.redactor.policy
        return (policy.handles, policy.titles, policy.text) != ("keep", "keep", "keep")

    def wrap_client(self, client: Client) -> Client:
        """Return a client whose answers are redacted."""
        return build_client(client.transport, self.redactor)

    def redact_groups(self, desired: Sequence[DesiredGroup]) -> tuple[DesiredGroup, ...]:
        """Redact desired groups. Raises `UsageError` if one has a person who was erased."""
        erased = sum(map(self._has_erased, desired))
        if erased:
            raise UsageError(
                f"{erased:,} of the groups in the desired table have people who were erased from this warehouse; "
                "nothing was sent. Remove these people from the table."
            )
        groups = tuple(map(self._redact_group, desired))
        self._desired |= {redacted.key: group for redacted, group in zip(groups, desired, strict=True)}
        self.save()
        return groups

    def _has_erased(self, group: DesiredGroup) -> bool:
        redactor = self.redactor
        return any(map(redactor.is_erased, group.addresses)) or any(
            text is not None and redactor.mentions_erased(text) for text in (group.title, group.message)
        )

    def _redact_group(self, group: DesiredGroup) -> DesiredGroup:
        redactor = self.redactor
        title = None if group.title is None else redactor.title(group.title)
        if title is not None and group.title is not None:
            self._titles[title] = group.title
        return replace(
            group,
            # The ledger has the key without erased people, too.
            key=redactor.replace_erased(group.key),
            from_handle=redactor.own_handle(group.from_handle),
            addresses=tuple(sorted(map(redactor.handle, group.addresses))),
            title=title,
            message=redactor.text_mark(group.message),
        )

    def reveal_creation(self, entry: Entry) -> DesiredGroup | None:
        """Return the group to create; null if its row in the desired table has changed."""
        recorded = DesiredGroup(
            entry.key or "", entry.from_handle or "", tuple(sorted(entry.handles)), entry.message or "", entry.title
        )
        if not self.is_redacting:
            return recorded
        group = self._desired.get(recorded.key)
        return group if group is not None and self._redact_group(group) == recorded else None

    def reveal_title(self, title: str) -> str | None:
        """Return the title to send; null if it is not in the desired table."""
        return title if self.redactor.policy.titles == "keep" else self._titles.get(title)

    def reveal_handle(self, handle: str, client: Client, chat_id: str) -> str | None:
        """Return the handle to send; null if it is unknown. Fetches the group if its answer may show the handle."""
        if self.redactor.policy.handles == "keep" or not PSEUDONYM.fullmatch(handle):
            return handle
        if handle not in self._handles and isinstance(self._vault, Vault):
            stored = self._vault.find_handle(handle)
            self._handles |= {} if stored is None else {handle: stored}
        if handle not in self._handles:
            with suppress(*SKIPPABLE_ERRORS):
                client.get_chat(chat_id)
        return self._handles.get(handle)

    def redact_chat(self, chat: Chat) -> Chat | None:
        """Redact the answer to a write; null if the policy leaves the chat out."""
        redacted = self.redactor.chat_by_id(chat)
        return None if isinstance(redacted, ExcludedChat) else redacted

    def redact_message(self, message: str) -> str | None:
        """Redact an error message of the API, which may quote handles."""
        return None if self.redactor.policy.redacts else self.redactor.replace_erased(message)

    # -- the interface of a vault, which the redactor calls

    def add(self, pseudonym: str, handle: str) -> None:
        self._handles[pseudonym] = handle
        if self._vault is not None:
            self._vault.add(pseudonym, handle)

    def save(self) -> None:
        if self._vault is not None:
            self._vault.save()


def redact_row(redactor: Redactor, table: Table, row: Row) -> Row | None:
    """Redact a row of the ledger by what its columns hold; null for an operation only about people who were erased."""
    handles = row.handles and tuple(redactor.handle(handle) for handle in row.handles if not redactor.is_erased(handle))
    if isinstance(row, Entry) and row.handles and not handles:
        return None
    values = {
        column.name: redactor.redact(column.pii, value)
        for column in table.columns
        if isinstance(value := getattr(row, column.name, None), str)
    }
    return replace(row, **values, handles=handles)
