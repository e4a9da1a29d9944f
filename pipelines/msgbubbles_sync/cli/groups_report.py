"""What groups.py says. A plan on a terminal shows handles, because it is there to be looked at; nothing else does."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.text import Text

from msgbubbles_sync.groups.display import escape, quote
from msgbubbles_sync.groups.ledger import Observation
from msgbubbles_sync.groups.model import ObservedGroup, Operation
from msgbubbles_sync.groups.plan import Plan
from msgbubbles_sync.groups.result import ApplyResult

SIGNS = {"create": ("+", "green"), "rename": ("~", "yellow"), "add": ("+", "green"), "remove": ("-", "red")}
PAST = {"create": "created", "rename": "renamed", "add": "added", "remove": "removed"}


def count_requests(plan: Plan, unresolved: int) -> int:
    """Return how many requests applying a plan takes if nothing goes wrong: one for the numbers, one for each
    operation, and one for each operation of an earlier apply without a verdict.
    """
    return len(plan.operations) + unresolved + 1 if plan.operations or unresolved else 0


def estimate_minutes(requests: int, per_minute: int) -> int:
    """Return how many minutes so many requests take at a limit; the first minute's are sent at once."""
    return max(math.ceil(requests / per_minute) - 1, 0) if per_minute else 0


def plan_dict(plan: Plan, unresolved: int, per_minute: int) -> dict[str, Any]:
    """Return a plan as JSON, for other programs: with handles, without messages."""
    requests = count_requests(plan, unresolved)
    return {
        "plan_id": plan.plan_id,
        "operations": [
            {"operation": one.kind, "key": one.key, "handles": list(one.handles), "title": one.title}
            for one in plan.operations
        ],
        "counts": {kind: plan.count(kind) for kind in SIGNS},
        "vanished": list(plan.vanished),
        "notes": [{"key": note.key, "what": note.what} for note in plan.notes],
        "unresolved": unresolved,
        "requests": requests,
        "minutes": estimate_minutes(requests, per_minute),
    }


def show_plan(console: Console, plan: Plan, known: dict[str, ObservedGroup], unresolved: int, per_minute: int) -> None:
    width = max((len(escape(operation.key)) for operation in plan.operations), default=0)
    for operation in plan.operations:
        sign, colour = SIGNS[operation.kind]
        line = Text(f"{sign} {operation.kind:<6}  {escape(operation.key):<{width}}  ", style=colour)
        line.append(_what(operation, known.get(operation.key)), style="default")
        console.print(line, soft_wrap=True)
    for note in plan.notes:
        console.print(f"! {escape(note.key)}: {note.what}", style="yellow", markup=False, soft_wrap=True)
    if plan.vanished:
        console.print(
            f"? no longer in the table, and left as they are: {', '.join(map(escape, plan.vanished))}",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
    if unresolved:
        console.print(f"{unresolved:,} operations of an earlier apply have no verdict; apply finds out first.")
    requests = count_requests(plan, unresolved)
    if not requests:
        console.print("Nothing to do: the groups are as the table says.")
        return
    counts = ", ".join(f"{plan.count(kind):,} to {kind}" for kind in SIGNS if plan.count(kind)) or "nothing to change"
    minutes = estimate_minutes(requests, per_minute)
    waits = f", {minutes:,} minutes at the limit of {per_minute} a minute" if minutes else ""
    console.print(f"Plan: {counts}. {requests:,} requests{waits}.")


def _what(operation: Operation, group: ObservedGroup | None) -> str:
    handles = ", ".join(map(escape, operation.handles))
    if operation.kind == "create":
        title = f"{quote(operation.title)} " if operation.title else ""
        return f"{title}from {escape(operation.from_handle or '')}: {handles}"
    if operation.kind == "rename":
        before = group.title if group and group.title else ""
        return f"{quote(before)} -> {quote(operation.title or '')}"
    return handles


def show_applied(console: Console, applied: ApplyResult, requests: int) -> None:
    done = ", ".join(
        f"{count:,} {PAST[kind]}" for (kind, outcome), count in applied.counts.items() if outcome == "succeeded"
    )
    settled = f"; {applied.resolved:,} of an earlier apply settled" if applied.resolved else ""
    console.print(f"{done or 'Nothing changed'}{settled}. {requests:,} requests.")
    for one in applied.remarks:
        console.print(f"! {escape(one.key)}: {one.operation}: {one.what}", style="yellow", markup=False, soft_wrap=True)


def complaints(applied: ApplyResult) -> list[str]:
    """Return a line for each thing that needs a look; no line holds a handle."""
    lines = [f"{escape(one.key)}: {one.operation} {one.outcome}: {one.why}" for one in applied.failures]
    if applied.halt is not None:
        lines.append(f"ended early: {applied.halt}")
    if applied.not_sent:
        lines.append(f"{applied.not_sent:,} operations were left; the next apply goes on with them")
    return lines


def adopted_text(observation: Observation) -> str:
    count = len(observation.handles or ())
    return f"{escape(observation.key)} is now {observation.chat_id}: {count:,} people are known in it"
