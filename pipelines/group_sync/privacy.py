"""What the policy leaves of the ledger."""

from __future__ import annotations

from dataclasses import replace

from msgbubbles.redaction import Redactor

from .ledger import Entry, Sighting


class PrivateLedger:
    """Rows of the ledger as they may land."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def entry(self, entry: Entry) -> Entry | None:
        """Null where the operation was about somebody who was erased, and nobody else."""
        handles = self._handles(entry.handles)
        if entry.handles and not handles:
            return None
        return replace(
            entry,
            from_handle=None if entry.from_handle is None else self._redactor.own_handle(entry.from_handle),
            handles=handles,
            title=None if entry.title is None else self._redactor.title(entry.title),
            # The API's own words, which may quote handles.
            error_message=None if self._redactor.policy.redacts else entry.error_message,
        )

    def sighting(self, sighting: Sighting) -> Sighting:
        return replace(
            sighting,
            from_handle=None if sighting.from_handle is None else self._redactor.own_handle(sighting.from_handle),
            title=None if sighting.title is None else self._redactor.title(sighting.title),
            handles=None if sighting.handles is None else self._handles(sighting.handles),
        )

    def _handles(self, handles: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._redactor.handle(one) for one in handles if not self._redactor.is_erased(one))
