"""Output of groups.py. Only a plan shows handles, because it is there to be reviewed."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from msgbubbles_sync.groups.ledger import Observation
from msgbubbles_sync.groups.model import ObservedGroup, Operation
from msgbubbles_sync.groups.plan import Plan
from msgbubbles_sync.groups.result import ApplyResult
from msgbubbles_sync.text import escape, estimate_minutes, format_count, quote

from .console import print_warning

SIGNS = {"create": ("+", "green"), "rename": ("~", "yellow"), "add": ("+", "green"), "remove": ("-", "red")}
PAST = {"create": "created", "rename": "renamed", "add": "added", "remove": "removed"}


def count_requests(plan: Plan, unresolved: int) -> int:
    """Return how many requests an apply of the plan takes if nothing goes wrong.

    One for the numbers, one for each operation, and one for each operation of unknown outcome.
    """
    return len(plan.operations) + unresolved + 1 if plan.operations or unresolved else 0


def plan_dict(plan: Plan, unresolved: int, per_minute: int) -> dict[str, object]:
    """Return a plan as JSON, with handles and without messages."""
    requests = count_requests(plan, unresolved)
    return {
        "plan_id": plan.plan_id,
        "operations": [
            {"operation": step.kind, "key": step.key, "handles": list(step.handles), "title": step.title}
            for step in plan.operations
        ],
        "counts": {kind: plan.count(kind) for kind in SIGNS},
        "vanished": list(plan.vanished),
        "notes": [{"key": note.key, "what": note.what} for note in plan.notes],
        "unresolved": unresolved,
        "requests": requests,
        "minutes": estimate_minutes(requests, per_minute),
    }


def show_plan(
    console: Console, plan: Plan, observed: dict[str, ObservedGroup], unresolved: int, per_minute: int
) -> None:
    width = max((len(escape(operation.key)) for operation in plan.operations), default=0)
    for operation in plan.operations:
        sign, colour = SIGNS[operation.kind]
        line = Text(f"{sign} {operation.kind:<6}  {escape(operation.key):<{width}}  ", style=colour)
        line.append(_describe_operation(operation, observed.get(operation.key)), style="default")
        console.print(line, soft_wrap=True)
    for note in plan.notes:
        print_warning(console, f"! {escape(note.key)}: {note.what}")
    if plan.vanished:
        print_warning(console, f"? no longer in the table, left unchanged: {', '.join(map(escape, plan.vanished))}")
    if unresolved:
        operations = format_count(unresolved, "operation")
        console.print(f"{operations} of an earlier apply with unknown outcome; apply finds out first.")
    requests = count_requests(plan, unresolved)
    if not requests:
        console.print("No changes: the groups match the table.")
        return
    counts = ", ".join(f"{plan.count(kind):,} to {kind}" for kind in SIGNS if plan.count(kind)) or "nothing to change"
    minutes = estimate_minutes(requests, per_minute)
    duration = f", {format_count(minutes, 'minute')} at {per_minute} requests a minute" if minutes else ""
    console.print(f"Plan: {counts}. {format_count(requests, 'request')}{duration}.")


def _describe_operation(operation: Operation, group: ObservedGroup | None) -> str:
    handles = ", ".join(map(escape, operation.handles))
    if operation.kind == "create":
        title = f"{quote(operation.title)} " if operation.title else ""
        return f"{title}from {escape(operation.from_handle or '')}: {handles}"
    if operation.kind == "rename":
        before = group.title if group and group.title else ""
        return f"{quote(before)} -> {quote(operation.title or '')}"
    return handles


def show_applied(console: Console, applied: ApplyResult, requests: int) -> None:
    counts = ", ".join(
        f"{count:,} {PAST[kind]}" for (kind, outcome), count in applied.counts.items() if outcome == "succeeded"
    )
    resolved = f"; {applied.resolved:,} of an earlier apply resolved" if applied.resolved else ""
    console.print(f"{counts or 'Nothing changed'}{resolved}. {format_count(requests, 'request')}.")
    for remark in applied.remarks:
        print_warning(console, f"! {escape(remark.key)}: {remark.operation}: {remark.what}")


def list_problems(applied: ApplyResult) -> list[str]:
    """Return a line for each problem. No line has a handle."""
    lines = [
        f"{escape(failure.key)}: {failure.operation} {failure.outcome}: {failure.why}" for failure in applied.failures
    ]
    if applied.halt is not None:
        lines.append(f"stopped early: {applied.halt}")
    if applied.not_sent:
        lines.append(f"{format_count(applied.not_sent, 'operation')} not sent; the next apply continues")
    return lines


def imported_dict(observation: Observation) -> dict[str, object]:
    """Return an imported group as JSON, without handles."""
    return {"key": observation.key, "chat_id": observation.chat_id, "members": len(observation.handles or ())}


def describe_imported(observation: Observation) -> str:
    members = format_count(len(observation.handles or ()), "known member")
    return f"{escape(observation.key)} is now {observation.chat_id}, with {members}"
