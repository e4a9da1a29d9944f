"""What has to be done so that the known groups become the desired ones. Pure: no file, no request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import msgspec

from msgbubbles.handles import fold_handle, without_people
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import write_privately

from .display import escaped_json
from .model import MAX_MEMBERS, DesiredGroup, ObservedGroup, Operation, fold_title

VERSION = 1

# A first roll-out is larger, and says so; what a schedule finds in between is not.
MAX_CREATES = 50
MAX_REMOVALS = 20


@dataclass(frozen=True)
class Note:
    """Something about a group that no operation can bring about."""

    key: str
    what: str


@dataclass(frozen=True)
class Plan:
    """The operations, those of a group together and in the order in which they are sent. `digest` is of what was known
    of the desired groups. `vanished` are the keys of known groups that nobody desires any more.
    """

    desired: tuple[DesiredGroup, ...]
    operations: tuple[Operation, ...]
    digest: str
    vanished: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    plan_id: str = field(default_factory=lambda: uuid4().hex)
    version: int = VERSION

    def count(self, kind: str) -> int:
        return sum(operation.kind == kind for operation in self.operations)


def build_plan(desired: Sequence[DesiredGroup], known: Mapping[str, ObservedGroup]) -> Plan:
    """The plan that makes of the `known` groups, by key, the `desired` ones, whose keys are distinct."""
    operations: list[Operation] = []
    notes: list[Note] = []
    for group in desired:
        now = known.get(group.key)
        if now is None:
            operations.append(_creation(group))
        elif now.is_gone:
            notes.append(Note(group.key, "its group is gone from the account; a new group needs a new key"))
        else:
            if now.from_handle is not None and fold_handle(now.from_handle) != fold_handle(group.from_handle):
                notes.append(
                    Note(group.key, "a group keeps the number it was created from; from_handle stays as it is")
                )
            operations += _changes(group, now)
    wanted = {group.key for group in desired}
    vanished = sorted(key for key, group in known.items() if key not in wanted and not group.is_gone)
    return Plan(tuple(desired), tuple(operations), digest_of(wanted, known), tuple(vanished), tuple(notes))


def _creation(group: DesiredGroup) -> Operation:
    return Operation("create", group.key, group.addresses, group.title, group.from_handle, group.message)


def _changes(group: DesiredGroup, now: ObservedGroup) -> Iterator[Operation]:
    if group.title is not None and fold_title(group.title) != fold_title(now.title):
        yield Operation("rename", group.key, title=group.title)
    # Nobody whom the table names may be removed, however the network spells their handle.
    joining = without_people(group.addresses, now.members)
    leaving = without_people(now.members, group.addresses)
    # Whoever joins comes first, so that the group never falls below two; but where it is full, somebody has to leave.
    size = len(now.members)
    while joining or leaving:
        if joining and (size < MAX_MEMBERS or not leaving):
            yield Operation("add", group.key, (joining.pop(0),))
            size += 1
        else:
            yield Operation("remove", group.key, (leaving.pop(0),))
            size -= 1


def digest_of(keys: Iterable[str], known: Mapping[str, ObservedGroup]) -> str:
    """A hash of all that is known of the groups with these keys, also that there are none."""
    groups = [(key, _plain(known.get(key))) for key in sorted(keys)]
    return hashlib.sha256(msgspec.json.encode(groups)).hexdigest()


def _plain(group: ObservedGroup | None) -> object:
    if group is None:
        return None
    return [group.chat_id, group.from_handle, group.title, sorted(group.members), group.is_gone]


# -- a plan in a file


def save(plan: Plan, path: Path) -> None:
    """Write a plan, for its owner only: it holds handles and messages."""
    document = msgspec.json.format(msgspec.json.encode(plan), indent=1).decode()
    write_privately(path, escaped_json(document) + "\n")


def load(path: Path) -> Plan:
    """A plan that was saved. Raises `UsageError`."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    except msgspec.DecodeError:
        raise UsageError(f"{path} is not a plan; make one with: groups.py plan TABLE --out {path.name}") from None
    if plan.version != VERSION:
        raise UsageError(f"{path} was made by another version of groups.py; make it again")
    return plan


def trim_plan(plan: Plan, known: Mapping[str, ObservedGroup], *, begun: bool) -> Plan:
    """What is left to do of a saved plan. Raises `UsageError` when it no longer fits what is known.

    A plan that nobody has begun fits what it was made from and nothing else. Of one that was cut off, what is left
    must be a part of it.
    """
    now = build_plan(plan.desired, known)
    fits = set(now.operations) <= set(plan.operations) if begun else now.digest == plan.digest
    if not fits:
        raise UsageError("the groups are not as they were when this plan was made; make a new one, and look at it")
    return replace(now, plan_id=plan.plan_id)


def check_limits(plan: Plan, max_creates: int, max_removals: int) -> None:
    """Raise `UsageError` when a plan creates more groups, or removes more people, than is allowed: a wrong query."""
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
