"""Plan the operations that turn observed groups into desired ones. Makes no request."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import msgspec

from msgbubbles.handles import exclude_people, fold_handle
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.text import escape_json, format_count

from .model import MAX_MEMBERS, DesiredGroup, ObservedGroup, Operation, fold_title

PLAN_VERSION = 1

# So few operations of a kind are allowed whatever their share is: of a small table, any change is a large part.
ALWAYS_ALLOWED = 10


@dataclass(frozen=True)
class ChangeLimits:
    """The most that one apply may change, larger than the changes between two scheduled applies.

    `percent` is of the groups in the table for renames, and of its people for those added to or removed from groups
    that exist. A first roll-out passes its own limits.
    """

    creates: int = 50
    renames: int = 50
    adds: int = 100
    removals: int = 20
    percent: int = 50


LIMITS = ChangeLimits()


@dataclass(frozen=True)
class Note:
    """A difference that no operation can remove."""

    key: str
    what: str


@dataclass(frozen=True)
class Plan:
    """Operations in the order in which they are sent, those of a group together.

    `digest` is of the observed state of the desired groups. `vanished` are the keys of observed groups that are no
    longer desired.
    """

    desired: tuple[DesiredGroup, ...]
    operations: tuple[Operation, ...]
    digest: str
    vanished: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    plan_id: str = field(default_factory=lambda: uuid4().hex)
    version: int = PLAN_VERSION

    def count(self, kind: str) -> int:
        return sum(operation.kind == kind for operation in self.operations)


def build_plan(desired: Sequence[DesiredGroup], observed: Mapping[str, ObservedGroup]) -> Plan:
    """Plan how `observed` groups, by key, become the `desired` ones, whose keys are distinct."""
    operations: list[Operation] = []
    notes: list[Note] = []
    for group in desired:
        now = observed.get(group.key)
        if now is None:
            operations.append(
                Operation("create", group.key, group.addresses, group.title, group.from_handle, group.message)
            )
        elif now.is_gone:
            notes.append(Note(group.key, "its group is gone from the account; a new group needs a new key"))
        else:
            if now.from_handle is not None and fold_handle(now.from_handle) != fold_handle(group.from_handle):
                notes.append(
                    Note(group.key, "a group keeps the number it was created from; from_handle stays as it is")
                )
            operations += _plan_changes(group, now)
    keys = {group.key for group in desired}
    vanished = sorted(key for key, group in observed.items() if key not in keys and not group.is_gone)
    return Plan(tuple(desired), tuple(operations), compute_digest(keys, observed), tuple(vanished), tuple(notes))


def _plan_changes(group: DesiredGroup, now: ObservedGroup) -> Iterator[Operation]:
    if group.title is not None and fold_title(group.title) != fold_title(now.title):
        yield Operation("rename", group.key, title=group.title)
    # A person in the table is never removed, whatever spelling of their handle the network shows.
    joining = exclude_people(group.addresses, now.members)
    leaving = exclude_people(now.members, group.addresses)
    # Additions come first, so that the group never has fewer than two members; if it is full, a removal does.
    size = len(now.members)
    while joining or leaving:
        if joining and (size < MAX_MEMBERS or not leaving):
            yield Operation("add", group.key, (joining.pop(0),))
            size += 1
        else:
            yield Operation("remove", group.key, (leaving.pop(0),))
            size -= 1


def compute_digest(keys: Iterable[str], observed: Mapping[str, ObservedGroup]) -> str:
    """Hash the observed state of the groups with these keys, missing groups included."""
    groups = [
        (key, [now.chat_id, now.from_handle, now.title, sorted(now.members), now.is_gone] if now else None)
        for key, now in ((key, observed.get(key)) for key in sorted(keys))
    ]
    return hashlib.sha256(msgspec.json.encode(groups)).hexdigest()


# -- saved plans


def save(plan: Plan, path: Path) -> None:
    """Write a plan that only its owner may read: it holds handles and messages."""
    document = msgspec.json.format(msgspec.json.encode(plan), indent=1).decode()
    write_privately(path, escape_json(document) + "\n")


def load(path: Path) -> Plan:
    """Load a saved plan. Raises `UsageError`."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    except msgspec.DecodeError:
        raise UsageError(f"{path} is not a plan. Make one with: groups.py plan TABLE --out {path.name}") from None
    if plan.version != PLAN_VERSION:
        raise UsageError(f"{path} was made by another version of groups.py. Make it again.")
    return plan


def trim_plan(plan: Plan, observed: Mapping[str, ObservedGroup], *, begun: bool) -> Plan:
    """Return what is left to do of a saved plan.

    Raises `UsageError` if the groups have changed since. A plan that was not begun must still match the state it was
    made from; of one that was begun, the remaining operations must be a part.
    """
    now = build_plan(plan.desired, observed)
    is_valid = set(now.operations) <= set(plan.operations) if begun else now.digest == plan.digest
    if not is_valid:
        raise UsageError("the groups have changed since this plan was made. Make a new one and review it.")
    return replace(now, plan_id=plan.plan_id)


def check_limits(plan: Plan, limits: ChangeLimits) -> None:
    """Raise `UsageError` if a plan changes more than allowed, as after a wrong query."""
    groups, people = len(plan.desired), sum(len(group.addresses) for group in plan.desired)
    for kind, noun, allowed, option, total in (
        ("create", "group", limits.creates, "--max-creates", None),
        ("rename", "group", limits.renames, "--max-renames", groups),
        ("add", "person", limits.adds, "--max-adds", people),
        ("remove", "person", limits.removals, "--max-removals", people),
    ):
        count = plan.count(kind)
        change = f"this would {kind} {format_count(count, noun)}"
        if count > allowed:
            raise UsageError(
                f"{change}, and {allowed:,} are allowed; nothing was changed. "
                f"Check the table. If it is right, pass {option} {count}"
            )
        percent = math.ceil(100 * count / total) if total else 0
        if count > ALWAYS_ALLOWED and percent > limits.percent:
            raise UsageError(
                f"{change}, {percent}% of the {total:,} in the table, and {limits.percent}% "
                f"are allowed; nothing was changed. Check the table. If it is right, pass --max-percent {percent}"
            )
