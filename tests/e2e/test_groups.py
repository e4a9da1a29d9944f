"""groups.py as a process against the sandbox: with faults, kills, signals and wrong usage."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.job import CHATS, Job
from helpers.process import Process, inherited_environment
from helpers.sizes import pick_size

GROUPS = CHATS.with_name("groups.py")
OURS = "+14155550100"
Row = dict[str, str]
NewJob = Callable[..., Job]


@dataclass
class Groups:
    """Runs `groups.py` on the database of a job."""

    job: Job

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return Process(
            [sys.executable, str(GROUPS), *arguments, "--database", "company.duckdb"],
            cwd=self.job.folder,
            env=self.job.whole_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == status, (output, errors)
        assert "Traceback" not in errors
        return output, errors

    def write(self, rows: Sequence[Row], name: str = "groups.csv") -> str:
        with (self.job.folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["key", "from_handle", "title", "addresses", "message"])
            writer.writeheader()
            writer.writerows(rows)
        return name


def person(number: int) -> str:
    return f"+1415555{number:04}" if number % 3 else f"person{number}@example.com"


def some_rows(chance: random.Random, count: int) -> list[Row]:
    return [
        {
            "key": f"group-{number}",
            "from_handle": OURS,
            "title": f"Group {number}",
            "addresses": ", ".join(person(one) for one in chance.sample(range(1000, 1200), chance.randint(2, 6))),
            "message": f"Hello, group {number}!",
        }
        for number in range(count)
    ]


def changed_rows(chance: random.Random, rows: list[Row]) -> list[Row]:
    """Change the titles and people of some rows."""
    changed = []
    for row in rows:
        people = row["addresses"].split(", ")
        if chance.random() < 0.3:
            people = [*people[1:], person(chance.randint(2000, 2100)), person(chance.randint(2200, 2300))]
        title = f"{row['title']} renamed" if chance.random() < 0.3 else row["title"]
        changed.append({**row, "title": title, "addresses": ", ".join(people), "message": "Never sent"})
    return changed


def applied_under_kills(groups: Groups, table: str, chance: random.Random, kills: int) -> int:
    """Apply a table, killing all but the last apply at random points. Returns how many were started."""
    requests = groups.job.server.requests
    arguments = ("apply", table, "--yes", "--max-creates", "1000", "--max-removals", "1000", "--max-adds", "1000")
    started = 0
    for _ in range(kills):
        process = groups.start(*arguments)
        started += 1
        aim = len(requests) + chance.randint(2, 40)
        while len(requests) < aim and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    groups.run(*arguments)
    return started + 1


def check(groups: Groups, rows: list[Row]) -> None:
    """Check that the sandbox has exactly these groups, each greeted once, and that the loaded ledger equals its log."""
    account, truth = groups.job.server.account, groups.job.server.truth()
    shown = {chat["title"]: chat for chat in truth.chats if chat["is_group"]}
    assert len([chat for chat in truth.chats if chat["is_group"]]) == len(rows)
    assert {title: set(account.participants(chat["id"])) for title, chat in shown.items()} == {
        row["title"]: set(row["addresses"].split(", ")) for row in rows
    }
    greetings = Counter(message["text"] for message in truth.messages)
    assert greetings == {f"Hello, group {number}!": 1 for number in range(len(rows))}

    work = groups.job.folder / ".msgbubbles" / "company" / "company.duckdb"
    with duckdb.connect(str(work), read_only=True) as database:
        ledger = database.execute(
            "SELECT operation, chat_id, handles, title FROM msgbubbles.group_operations WHERE outcome = 'succeeded'"
        ).fetchall()
        (open_ones,) = database.execute(
            "SELECT count(*) FROM msgbubbles.group_operations WHERE outcome = 'unknown'"
        ).fetchone() or (None,)
        members = database.execute(
            "SELECT chat_id, handle, sum(if(operation = 'added', 1, -1)) AS times "
            "FROM msgbubbles.group_member_operations GROUP BY ALL HAVING times <> 0"
        ).fetchall()
    done = Counter((one.operation, one.chat_id, one.handles, one.title) for one in groups.job.server.operations)
    assert open_ones == 0
    assert Counter((kind, chat, tuple(json.loads(handles)), title) for kind, chat, handles, title in ledger) == done
    assert {(chat, handle) for chat, handle, _ in members} == {
        (chat["id"], handle) for chat in shown.values() for handle in account.participants(chat["id"])
    }
    assert {count for _, _, count in members} == {1}


@pytest.mark.parametrize("shown", [True, False])
def test_every_group_is_created_once_despite_kills_and_faults(new_job: NewJob, shown: bool) -> None:
    count = int(os.environ.get("GROUPS_COUNT", "25")) if shown else 15
    kills = int(os.environ.get("GROUPS_KILLS", pick_size(2, nightly=5))) if shown else 1
    job = new_job(chats=0)
    job.run()
    groups = Groups(job)
    chance = random.Random(int(os.environ.get("GROUPS_SEED", "5")))
    job.server.knobs.server_errors = 0.05
    job.server.knobs.cut_bodies = 0.03
    job.server.knobs.errors_after_acting = 0.03
    job.server.knobs.participants_on_detail = shown
    rows = some_rows(chance, count)
    applied_under_kills(groups, groups.write(rows), chance, kills)
    check(groups, rows)
    rows = changed_rows(chance, rows)
    applied_under_kills(groups, groups.write(rows), chance, kills)
    check(groups, rows)
    output, _ = groups.run("plan", "groups.csv")
    assert output == "No changes: the groups match the table.\n"
    # A sync publishes the ledger, and finds its own dlt state.
    job.server.knobs.server_errors = job.server.knobs.cut_bodies = job.server.knobs.errors_after_acting = 0.0
    job.run()
    with duckdb.connect(str(job.database), read_only=True) as database:
        created = database.execute("SELECT count(*) FROM msgbubbles.group_operations WHERE operation = 'create'")
        assert created.fetchone() == (count,)


@pytest.fixture
def groups(new_job: NewJob) -> Groups:
    return Groups(new_job(chats=0))


def two(chance_title: str = "North") -> list[Row]:
    people = "+14155550111, ben@example.com"
    return [
        {"key": "north", "from_handle": OURS, "title": chance_title, "addresses": people, "message": "Hello"},
        {"key": "south", "from_handle": OURS, "title": "", "addresses": f"{people}, c@example.com", "message": "Hi"},
    ]


def test_plan_and_dry_run_send_nothing(groups: Groups) -> None:
    table = groups.write(two())
    output, _ = groups.run("plan", table, "--out", "plan.json")
    assert output == (
        '+ create  north  "North" from +14155550100: +14155550111, ben@example.com\n'
        "+ create  south  from +14155550100: +14155550111, ben@example.com, c@example.com\n"
        "Plan: 2 to create. 3 requests.\n"
    )
    as_dict = json.loads(groups.run("plan", table, "--json")[0])
    assert as_dict["counts"] == {"create": 2, "rename": 0, "add": 0, "remove": 0}
    assert (as_dict["requests"], as_dict["minutes"]) == (3, 0)
    groups.run("apply", table, "--dry-run")
    groups.run("apply", "plan.json", "--dry-run", "--yes")
    _, errors = groups.run("apply", table, status=2)
    assert errors == "stdin is not a terminal; pass --yes to skip the confirmation\n"
    _, errors = groups.run("apply", table, "--dry-run", "--max-creates", "1", status=2)
    assert "would create 2 groups, and 1 are allowed" in errors
    assert groups.job.server.requests == []


def test_saved_plan_is_applied_unchanged_or_refused(groups: Groups) -> None:
    groups.run("plan", groups.write(two()), "--out", "plan.json")
    groups.write(two("Another title"))
    output, _ = groups.run("apply", "plan.json", "--yes")
    assert output == "2 created. 2 requests.\n"
    assert {chat["title"] for chat in groups.job.server.truth().chats} == {"North", None}
    groups.run("plan", "groups.csv", "--out", "late.json")
    groups.run("apply", groups.write(two("A third")), "--yes")
    done = len(groups.job.server.operations)
    _, errors = groups.run("apply", "late.json", "--yes", status=2)
    assert errors == "the groups have changed since this plan was made. Make a new one and review it.\n"
    assert len(groups.job.server.operations) == done


def test_failed_group_is_reported_without_handles(groups: Groups) -> None:
    groups.job.server.knobs.unreachable = {"c@example.com"}
    output, errors = groups.run("apply", groups.write(two()), "--yes", status=3)
    assert output == "1 created. 3 requests.\n"
    assert errors.startswith("south: create failed: the API answered 400 invalid_handle (request req_")
    assert "c@example" not in errors
    rows = two()
    rows[1]["from_handle"] = "+14155550199"
    rows[0]["message"] = ""
    asked = len(groups.job.server.requests)
    _, errors = groups.run("apply", groups.write(rows), "--yes", status=2)
    assert errors == (
        "2 faults in the desired table; nothing was sent:\n"
        "  row 1 (north): message is missing; a group is created by its first message\n"
        "  row 2 (south): from_handle is not one of the account's numbers; GET /v1/numbers lists them\n"
    )
    assert [seen.method for seen in groups.job.server.requests[asked:]] == ["GET"]


def test_second_apply_is_refused_and_a_signal_stops_the_first(groups: Groups) -> None:
    groups.job.server.knobs.latency_seconds = 0.3
    rows = some_rows(random.Random(1), 30)
    table = groups.write(rows)
    first = groups.start("apply", table, "--yes")
    deadline = time.monotonic() + 60
    while len(groups.job.server.requests) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    _, errors = groups.run("apply", table, "--yes", status=75)
    assert str(first.pid) in errors
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "operations not sent; the next apply continues" in errors
    groups.job.server.knobs.latency_seconds = 0.0
    created = len(groups.job.server.operations)
    assert created < 30
    output, _ = groups.run("apply", table, "--yes")
    assert output == f"{30 - created} created. {31 - created} requests.\n"
    assert len(groups.job.server.operations) == 30


def test_import_read_and_typing(groups: Groups) -> None:
    groups.run("apply", groups.write(two()), "--yes")
    chat_id = groups.job.server.operations[0].chat_id
    for path in (groups.job.folder / ".msgbubbles" / "company").glob("groups.sqlite*"):
        path.unlink()
    output, _ = groups.run("import", "north", chat_id)
    assert output == f"north is now {chat_id}, with 2 known members\n"
    _, errors = groups.run("import", "other", chat_id, status=2)
    assert errors == "this group already has the key north\n"
    for arguments in (["import"], ["import", "north"], ["import", "north", chat_id, "--title", "North"]):
        assert (
            groups.run(*arguments, status=2)[1] == "import needs KEY CHAT_ID, or KEY --title TEXT, or --table TABLE\n"
        )
    south = groups.job.server.operations[1].chat_id
    (groups.job.folder / "ids.csv").write_text(
        f"key,chat_id\nnorth,{chat_id}\nsouth,{south}\nlost,{'0' * 32}\nshut,{'1' * 32}\n"
    )
    groups.job.server.knobs.refusal = lambda _method, path: (401, "closed") if "1" * 32 in path else None
    output, errors = groups.run("import", "--table", "ids.csv", status=3)
    assert output == f"south is now {south}, with 3 known members\n1 of 4 groups imported.\n"
    assert "lost: the group cannot be imported: the API answered 404 not_found" in errors
    assert "shut: the group cannot be imported: the API answered 401 closed" in errors
    groups.job.server.account.rename(chat_id, "Theirs", datetime.now(UTC))
    assert groups.run("plan", "groups.csv")[0] == "No changes: the groups match the table.\n"
    output, _ = groups.run("plan", "groups.csv", "--refresh")
    assert output.startswith('~ rename  north  "Theirs" -> "North"\nPlan: 1 to rename.')
    groups.job.server.knobs.refusal = lambda _method, path: (401, "closed") if south in path else None
    _, errors = groups.run("read", "south", "north", status=3)
    assert errors.startswith("south: the API answered 401 closed")
    groups.job.server.knobs.refusal = lambda *_: (401, "revoked")
    _, errors = groups.run("read", "south", "north", status=1)
    assert "revoked" in errors
    assert "south" not in errors
    groups.job.server.knobs.refusal = None
    asked = len(groups.job.server.requests)
    assert groups.run("typing", "north", "--on")[0] == "Typing indicator on: 1 chat.\n"
    groups.run("typing", chat_id, "--off")
    other = groups.job.server.operations[1].chat_id
    groups.job.server.knobs.refusal = lambda _method, path: (409, "closed") if path.endswith(f"{other}/read") else None
    output, errors = groups.run("read", "north", other, chat_id, status=3)
    assert output == "Marked as read: 2 chats.\n"
    assert errors.startswith(f"{other}: the API answered 409 closed")
    assert [(seen.path.rsplit("/", 1)[1], seen.status) for seen in writes(groups, asked)] == [
        ("typing", 200),
        ("typing", 200),
        ("read", 200),
        ("read", 409),
        ("read", 200),
    ]


def test_forget_detaches_a_key(groups: Groups) -> None:
    groups.run("apply", groups.write(two()), "--yes")
    chat_id = groups.job.server.operations[0].chat_id
    output, _ = groups.run("forget", "north")
    assert output == f"north is no longer the key of {chat_id}; the group is unchanged\n"
    _, errors = groups.run("forget", "north", status=2)
    assert errors == "no group has the key north. Check the key in your table.\n"


def writes(groups: Groups, since: int) -> list[Any]:
    return [seen for seen in groups.job.server.requests[since:] if seen.method != "GET"]


def test_read_and_typing_refuse_wrong_usage_before_sending(groups: Groups) -> None:
    groups.run("apply", groups.write(two()), "--yes")
    asked = len(groups.job.server.requests)
    _, errors = groups.run("read", "north", "nroth", status=2)
    assert errors == "nroth is neither the key of a group nor the id of a chat. Did you mean north?\n"
    _, errors = groups.run("typing", "elsewhere", "--on", status=2)
    assert errors.startswith("elsewhere is neither the key of a group nor the id of a chat. groups.py import KEY")
    _, errors = groups.run("typing", "north", status=2)
    assert errors == "typing needs --on or --off: pass --on to show the indicator, or --off to hide it\n"
    assert writes(groups, asked) == []


def test_detailed_exitcode_is_4_only_with_changes(groups: Groups) -> None:
    table = groups.write(two())
    groups.run("plan", table, "--detailed-exitcode", status=4)
    groups.run("plan", table)
    groups.run("apply", table, "--yes")
    groups.run("plan", table, "--detailed-exitcode")


def test_the_exit_statuses_and_options_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "groups.md").read_text()
    for option in (
        "--out",
        "--refresh",
        "--title",
        "--table",
        "--detailed-exitcode",
        "--json",
        "--yes",
        "--dry-run",
        "--max-creates",
        "--max-renames",
        "--max-adds",
        "--max-removals",
        "--max-percent",
        "--database",
        "--sandbox",
        "--quiet",
    ):
        assert f"`{option}" in text


@pytest.mark.parametrize("script", ["chats", "groups", "webhooks"])
def test_importing_a_script_does_not_import_dlt(script: str) -> None:
    """Dlt reads its configuration on import, so it must come after `configure_dlt`."""
    code = f"import sys, {script}; sys.exit('dlt' in sys.modules)"
    environment = {**inherited_environment(), "PYTHONPATH": str(CHATS.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
