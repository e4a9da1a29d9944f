"""Output about groups: titles, keys and handles are escaped."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from helpers.group_world import OURS, World, row
from msgbubbles_sync.cli.groups_report import list_problems, show_applied, show_plan
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.existing import ExistingGroup, import_group
from msgbubbles_sync.groups.model import DesiredGroup, ObservedGroup
from msgbubbles_sync.groups.plan import build_plan, load, save
from msgbubbles_sync.groups.result import ApplyResult, Failure, Remark

BAD = "x\x1b[31m\u202e\u200b\n\x9b"
SHOWN = r"x\x1b[31m\u202e\u200b\x0a\x9b"
PEOPLE = ("+14155550111", "ben@example.com")


def printed(show: Callable[[Console], None]) -> str:
    output = io.StringIO()
    show(Console(file=output, highlight=False, width=200))
    return output.getvalue()


def test_plan_shows_every_text_escaped(tmp_path: Path) -> None:
    desired = [
        DesiredGroup(f"new{BAD}", OURS + BAD, PEOPLE, "Hello", f'Title{BAD}" from'),
        DesiredGroup(f"old{BAD}", OURS, PEOPLE, "Hello", f"Title{BAD}"),
        DesiredGroup(f"gone{BAD}", OURS, PEOPLE, "Hello"),
    ]
    known = {
        f"old{BAD}": ObservedGroup(f"old{BAD}", "1", OURS, f"Before{BAD}", frozenset({*PEOPLE, f"who{BAD}"})),
        f"gone{BAD}": ObservedGroup(f"gone{BAD}", "2", OURS, None, frozenset(PEOPLE), is_gone=True),
        f"left{BAD}": ObservedGroup(f"left{BAD}", "3", OURS, None, frozenset(PEOPLE)),
    }
    plan = build_plan(desired, known)
    output = printed(lambda console: show_plan(console, plan, known, 0, 0))
    assert not set(output) & set(BAD[1:]) - {"[", "3", "1", "m", "\n"}
    for text in ("new", r"Title", "old", "Before", "who", "gone", "left"):
        assert text + SHOWN in output
    assert rf'"Title{SHOWN}\" from" from' in output
    assert len(output.splitlines()) == 6
    path = tmp_path / "plan.json"
    save(plan, path)
    assert not set(path.read_text()) & {"\x1b", "\u202e", "\u200b", "\x9b"}
    assert load(path) == plan


def test_result_shows_every_key_escaped(world: World) -> None:
    applied = ApplyResult(
        failures=[Failure(f"a{BAD}", "add", "failed", "why")], remarks=[Remark(f"b{BAD}", "add", "was there")]
    )
    output = "".join([printed(lambda console: show_applied(console, applied, 1)), *list_problems(applied)])
    assert f"a{SHOWN}: add failed: why" in output
    assert f"! b{SHOWN}: add: was there" in output
    world.apply(row("a", *PEOPLE))
    with world.client() as client:
        import_group(world.context(), client, ExistingGroup(f"a{BAD}", client.create_group(OURS, PEOPLE, "Hello").id))
        with pytest.raises(UsageError, match="already has the key a") as raised:
            import_group(world.context(), client, ExistingGroup("b", str(world.observed(f"a{BAD}").chat_id)))
    assert SHOWN in str(raised.value)
