"""Properties of plans: an applied plan leaves nothing to do and exceeds no limit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.model import MAX_MEMBERS, MIN_MEMBERS, DesiredGroup, ObservedGroup, Operation
from msgbubbles_sync.groups.plan import ChangeLimits, Plan, build_plan, check_limits, load, save, trim_plan

PEOPLE = [f"+1415555{number:04}" for number in range(40)]
NUMBERS = ["+14155550100", "+14155550101"]
members = st.one_of(
    st.sets(st.sampled_from(PEOPLE), min_size=MIN_MEMBERS, max_size=5),
    # Full groups, where a removal must come before an addition.
    st.sets(st.sampled_from(PEOPLE), min_size=MAX_MEMBERS - 1, max_size=MAX_MEMBERS),
)
titles = st.one_of(st.none(), st.sampled_from(["A", "B", "Ü 🎉"]))
keys = st.sampled_from("abcdef")


@st.composite
def desired_tables(draw: st.DrawFn) -> list[DesiredGroup]:
    return [
        DesiredGroup(key, draw(st.sampled_from(NUMBERS)), tuple(sorted(draw(members))), "Hello", draw(titles))
        for key in draw(st.lists(keys, unique=True, min_size=1))
    ]


@st.composite
def known_worlds(draw: st.DrawFn) -> dict[str, ObservedGroup]:
    return {
        key: ObservedGroup(
            key,
            f"chat-{key}",
            draw(st.sampled_from([*NUMBERS, None])),
            draw(titles),
            frozenset(draw(members)),
            draw(st.booleans()) and draw(st.booleans()),
        )
        for key in draw(st.sets(keys))
    }


def world_after(known: dict[str, ObservedGroup], operations: tuple[Operation, ...]) -> dict[str, ObservedGroup]:
    """Apply operations as the network does, within the limits of a group."""
    world = dict(known)
    for one in operations:
        if one.kind == "create":
            assert one.key not in world
            assert one.message
            world[one.key] = ObservedGroup(one.key, "new", one.from_handle, one.title, frozenset(one.handles))
        else:
            world[one.key] = world[one.key].after(one.kind, one.handles, one.title)
        assert MIN_MEMBERS <= len(world[one.key].members) <= MAX_MEMBERS
    return world


@given(desired_tables(), known_worlds())
def test_applied_plan_leads_to_the_desired_groups(desired: list[DesiredGroup], known: dict[str, ObservedGroup]) -> None:
    plan = build_plan(desired, known)
    world = world_after(known, plan.operations)
    for group in desired:
        now = world[group.key]
        if now.is_gone:
            assert now == known[group.key]
            continue
        assert now.members == set(group.addresses)
        assert now.title == (
            group.title if group.title is not None or group.key not in known else known[group.key].title
        )
    assert build_plan(desired, world).operations == ()
    # One request for each difference, and no others.
    assert len(set(plan.operations)) == len(plan.operations)
    for key, observed in known.items():
        if key not in {one.key for one in desired}:
            assert world[key] == observed
            assert (key in plan.vanished) is not observed.is_gone


@given(desired_tables(), known_worlds(), st.data())
def test_interrupted_plan_is_trimmed_to_the_rest(
    desired: list[DesiredGroup], known: dict[str, ObservedGroup], data: st.DataObject
) -> None:
    plan = build_plan(desired, known)
    done = data.draw(st.integers(0, len(plan.operations)))
    world = world_after(known, plan.operations[:done])
    left = trim_plan(plan, world, begun=done > 0)
    assert left.plan_id == plan.plan_id
    assert left.operations == plan.operations[done:]


def a_plan() -> tuple[Plan, dict[str, ObservedGroup]]:
    desired = [DesiredGroup("a", NUMBERS[0], tuple(PEOPLE[:3]), "Hello", "New")]
    known = {"a": ObservedGroup("a", "chat-a", NUMBERS[0], "Old", frozenset(PEOPLE[:2]))}
    return build_plan(desired, known), known


def test_outdated_plan_is_refused() -> None:
    plan, known = a_plan()
    elsewhere = {**known, "z": ObservedGroup("z", "chat-z", NUMBERS[0], None, frozenset(PEOPLE[:2]))}
    assert trim_plan(plan, elsewhere, begun=False).operations == plan.operations
    for moved in (
        {},
        {"a": replace(known["a"], title="Somebody's")},
        {"a": replace(known["a"], members=frozenset(PEOPLE[5:8]))},
        {"a": replace(known["a"], chat_id="another")},
    ):
        with pytest.raises(UsageError, match="have changed since this plan was made"):
            trim_plan(plan, moved, begun=False)
    with pytest.raises(UsageError, match="have changed since"):
        trim_plan(plan, {"a": replace(known["a"], members=frozenset(PEOPLE[5:8]))}, begun=True)


def test_saved_plan_is_private_and_loads_unchanged(tmp_path: Path) -> None:
    plan, _ = a_plan()
    path = tmp_path / "plan.json"
    save(plan, path)
    assert load(path) == plan
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", ["{}", "not json", '{"desired": []}'])
def test_file_that_is_not_a_plan_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"is not a plan. Make one with: groups.py plan TABLE --out plan.json"):
        load(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "none.json")


def test_impossible_changes_become_notes() -> None:
    desired = [DesiredGroup(key, NUMBERS[0], tuple(PEOPLE[:2]), "Hello") for key in ("gone", "other")]
    known = {
        "gone": ObservedGroup("gone", "1", NUMBERS[0], None, frozenset(PEOPLE[:2]), is_gone=True),
        "other": ObservedGroup("other", "2", NUMBERS[1], None, frozenset(PEOPLE[:2])),
    }
    plan = build_plan(desired, known)
    assert plan.operations == ()
    assert [note.key for note in plan.notes] == ["gone", "other"]
    assert "a new group needs a new key" in plan.notes[0].what
    assert "keeps the number" in plan.notes[1].what


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"title": "New"}, "would rename 12 groups, 60% of the 20 in the table, and 50% are allowed.*--max-percent 60"),
        ({"people": 4}, "would add 24 people, 38% of the 64 in the table, and 30% are allowed.*--max-percent 38"),
        ({"people": 1}, "would remove 12 people, 43% of the 28 in the table, and 42% are allowed.*--max-percent 43"),
    ],
)
def test_change_of_a_large_share_of_the_table_is_refused(change: dict[str, Any], says: str) -> None:
    def plan_of(changed: int) -> Plan:
        now = {
            f"group-{number}": ObservedGroup(f"group-{number}", f"{number}", NUMBERS[0], "Old", frozenset(PEOPLE[:2]))
            for number in range(20)
        }
        desired = [
            DesiredGroup(
                key,
                NUMBERS[0],
                tuple(PEOPLE[: change.get("people", 2) if number < changed else 2]),
                "Hello",
                change.get("title", "Old") if number < changed else "Old",
            )
            for number, key in enumerate(now)
        ]
        return build_plan(desired, now)

    percent = int(re.search(r"and (\d+)%", says)[1])  # type: ignore[index]
    with pytest.raises(UsageError, match=says):
        check_limits(plan_of(12), ChangeLimits(percent=percent))
    check_limits(plan_of(12), ChangeLimits(percent=percent + 20))
    check_limits(plan_of(5), ChangeLimits(percent=0))  # ten and fewer of a kind are always allowed
