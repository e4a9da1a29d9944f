"""An upgrade from the release before the rebuild loses nothing and reads nothing again.

`make_fixture.py` describes the archives. Names that this release has changed are at the top. Queries on a fixture
before its upgrade use the old names, and stay as they are.
"""

from __future__ import annotations

import csv
import json
import math
import sqlite3
import sys
import tarfile
import tomllib
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import httpx

from helpers.hooks import Process, signed
from helpers.job import CHATS, Job
from helpers.process import run_process
from helpers.warehouse_rows import differences, read_rows
from msgbubbles_sync.sandbox import Account, Knobs, NewMessage, Server, serve
from msgbubbles_sync.sandbox.app import GroupChange

HERE = Path(__file__).parent
GROUPS = CHATS.with_name("groups.py")
DATABASE = ("--database", "company.duckdb")
PAGE = 100
# Names of this release.
SPOOL = Path(".msgbubbles/company/webhooks/spool")
OPERATIONS = "SELECT key, operation, outcome FROM msgbubbles.group_operations"
MEMBERS = "SELECT handle, operation, chat_id FROM msgbubbles.group_member_operations"
EVENTS = "SELECT event_id FROM msgbubbles.webhook_events"
REJECTED = "SELECT row->>'id' FROM msgbubbles.rejected_rows"
RUNS = "SELECT run_id FROM msgbubbles.sync_runs"
# No row is read again because of its age, which depends on when the test runs.
WITHOUT_REFRESH = {"SOURCES__MSGBUBBLES__REFRESH_CHATS": "[]", "SOURCES__MSGBUBBLES__REFRESH_MESSAGES": "[]"}
POLICY = "SOURCES__MSGBUBBLES__PRIVACY__"


@dataclass
class Opened:
    """A copy of a fixture, and a server for its account. `served` counts how often each row of a list was returned."""

    job: Job
    facts: dict[str, Any]
    served: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def server(self) -> Server:
        return self.job.server

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.job.database), read_only=True) as connection:
            return connection.execute(sql).fetchall()

    def loaded(self) -> dict[str, set[str]]:
        """Return the ids of published rows whose place in the list has not changed: a new message moves its chat."""
        chats = dict(self.rows("SELECT id, epoch_ms(last_message_at) FROM msgbubbles.chats"))
        now = self.server.account.all("SELECT id, last_us / 1000 AS last_ms FROM chats")
        return {
            "messages": {row[0] for row in self.rows("SELECT id FROM msgbubbles.messages")},
            "chats": {row["id"] for row in now if row["id"] in chats and chats[row["id"]] == row["last_ms"]},
        }

    def pages_needed(self, loaded: dict[str, set[str]]) -> int:
        """Return how many pages the other rows take: each missing interval starts and ends within a page."""
        truth = self.server.truth()
        rows = {"messages": len(truth.messages), "chats": len(truth.chats)}
        return sum(
            math.ceil((rows[stream] - len(loaded[stream])) / PAGE) + 1 + len(self.facts["missing"][stream])
            for stream in rows
        )

    def check_not_read_again(self, stream: str, loaded: set[str]) -> None:
        """Check that loaded rows are read again only on the newest page, and on the last page of a missing interval.

        The oldest interval ends with the list.
        """
        allowed = PAGE * len(self.facts["missing"][stream])
        assert allowed < len(loaded)
        assert len({key for kind, key in self.served if kind == stream} & loaded) <= allowed


@contextmanager
def open_fixture(name: str, folder: Path) -> Iterator[Opened]:
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="tar")
    facts = json.loads((folder / "facts.json").read_text())

    def count(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        if "id" in row:
            old.served[kind, row["id"]] += 1
        return {**row, "created_at": "yesterday"} if row.get("id") == facts.get("rejected_message") else row

    account = Account(folder / "account.sqlite")
    with serve(account, Knobs(transform_row=count)) as server:
        old = Opened(Job(folder, server, dict(WITHOUT_REFRESH)), facts)
        yield old
    account.close()


def write(account: Account) -> None:
    """Add messages to existing chats, and a new chat."""
    now = datetime.now(UTC)
    known = account.all("SELECT id FROM chats WHERE NOT is_group AND last_us IS NOT NULL ORDER BY last_us, id LIMIT 10")
    chats = [*(row["id"] for row in known), account.add_chat("+14155550100", "+14155550199", now)]
    account.add_messages(
        NewMessage(chat_id, "inbound", "since the upgrade", now - timedelta(seconds=number), "received")
        for number, chat_id in enumerate(chats)
    )


def test_backfill_continues_where_the_older_release_stopped(tmp_path: Path) -> None:
    with open_fixture("plain", tmp_path) as old:
        rejected, runs = old.rows(REJECTED), set(old.rows(RUNS))
        write(old.server.account)
        loaded = old.loaded()
        needed = old.pages_needed(loaded)

        # The chat of the row that cannot be read is read again, for a tie overflow: that row counts as rejected.
        outcome = old.job.run(transform=True, status=3)
        assert outcome.summary["streams"]["messages"]["rejected"] == 1
        assert (outcome.summary["outcome"], outcome.summary["failed_reads"]) == ("complete", {})
        # The rejected row stays where it was.
        assert differences(old.job.database, old.server.truth()) == {
            "messages": {"missing": 1, "surplus": 0, "stale": 0}
        }
        assert old.rows(REJECTED) == rejected == [(old.facts["rejected_message"],)]
        assert set(old.rows(RUNS)) > runs
        for stream, ids in loaded.items():
            old.check_not_read_again(stream, ids)
        assert outcome.requests <= needed + 5
        (threads,) = old.rows("SELECT count(*) FROM marts.thread_activity")
        assert threads == (len(old.server.truth().chats),)

        again = old.job.run()
        assert again.requests <= 5
        assert all(stream["landed"] == 0 for stream in again.summary["streams"].values())  # codespell:ignore landed


def test_events_are_loaded_once_and_groups_and_their_operations_known(tmp_path: Path) -> None:
    with open_fixture("plain", tmp_path) as old:
        events, spooled = {row[0] for row in old.rows(EVENTS)}, old.facts["spooled"]
        receive_events(old, min(events), spooled[0], "evt_new")
        shown = old.server.account.all("SELECT id, title FROM chats WHERE is_group")
        chats = {row["title"]: row["id"] for row in shown}
        members = set(old.rows(MEMBERS))
        # The older release had not loaded a rename, an addition, and an operation without a response.
        old.job.run("--max-requests", "1", status=3)
        assert sorted(row[0] for row in old.rows(EVENTS)) == sorted([*events, *spooled, "evt_new"])
        assert list((tmp_path / SPOOL).glob("*")) == []
        files = [path for path in (tmp_path / ".msgbubbles").rglob("*.jsonl") if "evt_half" in path.read_text()]
        assert len(files) == 1, "the dead letter is still there"
        asked = Counter(old.rows(OPERATIONS))
        assert asked == Counter(
            [
                ("north", "create", "succeeded"), ("south", "create", "succeeded"), ("east", "create", "failed"),
                ("north", "rename", "succeeded"), ("south", "add", "succeeded"), ("west", "create", "unknown"),
            ]
        )  # fmt: skip
        assert set(old.rows(MEMBERS)) == members | {("+14155550144", "added", chats["South"])}

        # The creation without a response gets its outcome, and no group is created or changed a second time.
        run_groups(old)
        assert old.server.operations == []
        old.job.run("--max-requests", "1", status=3)
        final = {("west", "create", "unknown"): ("west", "create", "succeeded")}
        assert Counter(old.rows(OPERATIONS)) == Counter(final.get(row, row) for row in asked.elements())

        rename(tmp_path / "groups.csv", "west", "West, renamed")
        run_groups(old)
        assert old.server.operations == [GroupChange("rename", chats["West"], title="West, renamed")]


def receive_events(old: Opened, *ids: str) -> None:
    """Start the receiver on the files of the older release, and send it events, as the API does again for some."""
    secrets = old.job.folder / "secrets.toml"
    key = b64decode(tomllib.loads(secrets.read_text())["webhooks"]["secrets"][-1].removeprefix("whsec_"))
    receiver = Process(old.job.folder, old.job.whole_environment(), *DATABASE, "--secrets-file", str(secrets))
    try:
        for event_id in ids:
            event = {"id": event_id, "type": "conversation.typing", "conversation_id": "c1", "typing": True}
            body = json.dumps(event).encode()
            answer = httpx.post(receiver.url, content=body, headers=signed(body, event_id, key=key), trust_env=False)
            assert answer.is_success
    finally:
        assert receiver.stop() == 0


def run_groups(old: Opened) -> None:
    done = run_process(
        [sys.executable, str(GROUPS), "apply", "groups.csv", "--yes", *DATABASE],
        cwd=old.job.folder,
        env=old.job.whole_environment(),
        capture_output=True,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)


def rename(table: Path, key: str, title: str) -> None:
    with table.open(newline="") as file:
        rows = [row | {"title": title} if row["key"] == key else row for row in csv.DictReader(file)]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_pseudonyms_stay_and_erased_people_do_not_return(tmp_path: Path) -> None:
    with open_fixture("pseudonymous", tmp_path) as old:
        erased, key = old.facts["erased"], old.facts["key"]
        policy = {"PRESET": "analytics", "KEY": key, "VAULT": str(tmp_path / "vault.sqlite")}
        old.job.environment |= {POLICY + name: value for name, value in policy.items()}
        loaded = old.loaded()
        handles = dict(old.rows("SELECT id, remote_handle FROM msgbubbles.chats"))
        senders = dict(old.rows("SELECT id, sender_handle FROM msgbubbles.messages"))
        with closing(sqlite3.connect(tmp_path / "vault.sqlite")) as vault:
            people_before = dict(vault.execute("SELECT pseudonym, handle FROM people"))
        write(old.server.account)

        old.job.run()  # the first test builds the marts of an older release's tables
        assert old.job.ask("privacy", "lookup", *people_before) == people_before
        old.check_not_read_again("messages", loaded["messages"])
        rows = read_rows(old.job.database)
        assert {chat: rows["chats"][chat]["remote_handle"] for chat in handles} == handles
        assert {message: rows["messages"][message]["sender_handle"] for message in senders} == senders

        truth = old.server.truth()
        gone = {row["id"] for row in truth.chats if row["remote_handle"] == erased}
        people = {row["id"]: row["remote_handle"] for row in truth.chats if row["id"] not in gone}
        assert gone
        assert rows["chats"].keys() == people.keys()
        assert rows["messages"].keys() == {
            row["id"] for row in truth.messages if row["conversation_id"] not in gone and row["sender"] != erased
        }
        assert old.rows("SELECT sum(people) FROM msgbubbles.erasures") == [(1,)]
        pseudonyms = {row["remote_handle"]: people[chat] for chat, row in rows["chats"].items() if not row["is_group"]}
        assert old.job.ask("privacy", "lookup", *pseudonyms) == pseudonyms, "the vault has all pseudonyms"
        assert old.job.ask("verify", "--full")["equal"]
