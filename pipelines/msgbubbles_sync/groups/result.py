"""Results of an apply, counted and described without handles."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

from .ledger import OperationResult
from .model import Kind

UNKNOWN_PERSON = (
    "no table has the handle of this pseudonym, and the API does not show it: remove the person in the app, or "
    "configure a vault"
)
# Error code of an operation that cannot be sent again, because the ledger has only pseudonyms of it.
PSEUDONYMIZED = "disguised"  # codespell:ignore disguised
NOT_IN_EFFECT = "no answer came; the chat shows that it was not done"
# Error code of a creation that may have succeeded, but no chat can be identified as its group.
NOT_FOUND = "not_found_again"
DONE_BEFORE = {
    "create": "found among the chats of the account",
    "rename": "the group already had this title",
    "add": "the person was already in the group",
    "remove": "the person was no longer in the group",
}


@dataclass(frozen=True)
class Failure:
    """An operation that did not succeed. `why` names no handle."""

    key: str
    operation: str
    outcome: str
    why: str


@dataclass(frozen=True)
class Remark:
    """A note about an operation that succeeded. `what` names no handle."""

    key: str
    operation: str
    what: str


@dataclass
class ApplyResult:
    """The result of an apply.

    `counts` are of operations, by kind and outcome; `not_sent` were not sent. `resolved` are operations of earlier
    applies whose outcome is known now. `halt` ended the apply early.
    """

    plan_id: str = ""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    resolved: int = 0
    not_sent: int = 0
    halt: Exception | None = None

    def as_dict(self) -> dict[str, object]:
        return {
            "plan_id": self.plan_id,
            "operations": {
                kind: {outcome: n for (what, outcome), n in sorted(self.counts.items()) if what == kind}
                for kind in get_args(Kind)
            },
            "settled": self.resolved,  # codespell:ignore settled
            "left": self.not_sent,
            "failures": [vars(failure) for failure in self.failures],
            "remarks": [vars(remark) for remark in self.remarks],
            "halt": None if self.halt is None else str(self.halt),
        }


def describe_result(result: OperationResult) -> str:
    """Describe a result by its status and code; the API's message may quote handles."""
    code = " ".join(str(part) for part in (result.http_status, result.error_code) if part is not None)
    request = f" (request {result.request_id})" if result.request_id else ""
    if result.error_code == PSEUDONYMIZED:
        return (
            "outcome unknown, and its row in the table has changed: restore the row for one apply, which finds out "
            "the outcome"
        )
    if result.error_code == NOT_FOUND:
        return (
            f"it may have been created{request}, but no chat can be identified as this group; if it exists, run: "
            "groups.py import KEY CHAT_ID"
        )
    if result.outcome == "unknown":
        return f"outcome unknown: {code or 'the API could not be reached'}{request}; the next apply finds out"
    return f"the API answered {code or 'with an error'}{request}"
