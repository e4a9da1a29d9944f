"""What keeps a wrong query from doing harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgbubbles_sync.errors import UsageError

if TYPE_CHECKING:  # it imports dlt, which has to wait until dlt is configured
    from .plan import Plan

# A first roll-out is larger, and says so; what a schedule finds in between is not.
MAX_CREATES = 50
MAX_REMOVALS = 20


def check(plan: Plan, max_creates: int, max_removals: int) -> None:
    """Raises `UsageError` when a plan creates more groups, or removes more people, than is allowed."""
    for kind, count, allowed, option in (
        ("create", plan.count("create"), max_creates, "--max-creates"),
        ("remove", plan.count("remove"), max_removals, "--max-removals"),
    ):
        if count > allowed:
            what = f"create {count:,} groups" if kind == "create" else f"remove {count:,} people"
            raise UsageError(
                f"this would {what}, and {allowed:,} are allowed; nothing was changed. "
                f"Look at the table, and if it is right: {option} {count}"
            )
