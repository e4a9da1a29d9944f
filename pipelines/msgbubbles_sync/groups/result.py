"""What an apply did: results of its operations, counted, and put into words that name no handle."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .ledger import OperationResult

NOBODY_KNOWS = (
    "who is behind the pseudonym is in no table here, and the API does not show it: remove them in the app, or "
    "configure a vault"
)
# Of an operation that cannot be repeated: what it said is kept as a pseudonym only.
DISGUISED = "disguised"
NOT_IN_EFFECT = "no answer came; a look at the chat showed that it was not done"
# Of a creation: it may be there, and nothing that the API shows says which group it is.
NOT_FOUND = "not_found_again"
DONE_BEFORE = {
    "create": "found among the chats of the account",
    "rename": "the group had this title already",
    "add": "the person was in the group already",
    "remove": "the person was not in the group any more",
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
    """Something to know about an operation that succeeded. `what` names no handle."""

    key: str
    operation: str
    what: str


@dataclass
class ApplyResult:
    """What came of it. `counts` are of operations, by kind and outcome; `left` were not sent. `halt` ended it early."""

    plan_id: str = ""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    settled: int = 0
    left: int = 0
    halt: Exception | None = None

    @property
    def succeeded(self) -> int:
        return sum(count for (_, outcome), count in self.counts.items() if outcome == "succeeded")

    def as_dict(self) -> dict[str, Any]:
        kinds = ("create", "rename", "add", "remove")
        return {
            "plan_id": self.plan_id,
            "operations": {
                kind: {outcome: n for (what, outcome), n in sorted(self.counts.items()) if what == kind}
                for kind in kinds
            },
            "settled": self.settled,
            "left": self.left,
            "failures": [vars(failure) for failure in self.failures],
            "remarks": [vars(remark) for remark in self.remarks],
            "halt": None if self.halt is None else str(self.halt),
        }


def describe_result(verdict: OperationResult) -> str:
    """What the API said, in its stable words: its message for humans may quote handles."""
    said = " ".join(str(one) for one in (verdict.http_status, verdict.error_code) if one is not None)
    request = f" (request {verdict.request_id})" if verdict.request_id else ""
    if verdict.error_code == DISGUISED:
        return "no verdict, and its row is not in the table as it was: have it so for one apply, which finds out"
    if verdict.error_code == NOT_FOUND:
        return (
            f"it may have been created{request}, and no chat shows which group it is; if it is there, run: "
            "groups.py import KEY CHAT_ID"
        )
    if verdict.outcome == "unknown":
        return f"no verdict: {said or 'the API could not be reached'}{request}; the next apply finds out"
    return f"the API answered {said or 'with an error'}{request}"
