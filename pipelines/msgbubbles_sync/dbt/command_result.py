"""The result of a dbt command: what failed, and the messages of the database about it."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.files import write_privately

from .build_result import get_details_path

TIMED_OUT = "the statement took longer than [sync] statement_timeout_seconds"


class CommandResult:
    """The result of a dbt command. `failed` are the nodes that did not succeed, without tests that only warn."""

    def __init__(self, answer: Any, destination: Destination) -> None:
        results = getattr(answer.result, "results", ())
        self.nodes: list[Any] = [result.node for result in results]
        self.skipped: list[Any] = [result.node for result in results if result.status == "skipped"]
        self.failed: list[Any] = [result for result in results if result.status in ("error", "fail")]
        self._exception = answer.exception
        self._destination = destination
        if not answer.success and not self.failed:
            self.failed = [None]

    @property
    def names(self) -> str:
        return ", ".join(node.node.name for node in self.failed if node) or "dbt did not start"

    @property
    def has_not_started(self) -> bool:
        return None in self.failed

    @property
    def timed_out(self) -> list[str]:
        """The models and data tests that took too long."""
        return [failed.node.name for failed in self.failed if failed and self._has_timed_out(str(failed.message))]

    def _has_timed_out(self, message: str) -> bool:
        return TIMED_OUT in message or self._destination.is_timeout(message)

    @cached_property
    def reason(self) -> str | None:
        """The meaning of the database's messages and how to fix it; null if unknown."""
        return self._destination.explain(self.messages)

    def explain(self) -> str:
        """Return the end of a sentence: what the database's messages mean, and the file that has them."""
        return f"{f': {self.reason}' if self.reason else ''}; see {self.write_details()}"

    def write_details(self) -> Path:
        """Write the database's messages to a file, after what they mean, and return its path."""
        details = get_details_path(self._destination.workspace)
        with suppress(OSError):  # a full or read-only disk, which the run reports as well
            write_privately(details, "\n\n".join(filter(None, (self.reason, self.messages))) + "\n")
        return details

    @property
    def messages(self) -> str:
        messages = [f"{node.node.name}: {node.message}{_describe_query(node)}" for node in self.failed if node]
        return "\n\n".join(messages) or str(self._exception)


def _describe_query(result: Any) -> str:
    """Return the query that selects the rows that fail a data test; empty for other nodes."""
    if result.node.resource_type != "test" or result.status != "fail":
        return ""
    return f"\nThe rows:\n{result.node.compiled_code.strip()}"
