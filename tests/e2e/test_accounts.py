"""Several accounts in one warehouse: a job for each, and tables that show all of them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pytest

from helpers.canary import ANN, PRIVACY_KEY, build_canary_account, find_words, now
from helpers.context import build_destination
from helpers.job import CHATS, SELECTING, Job
from helpers.lake import lake_at
from helpers.process import Process
from helpers.sizes import IS_NIGHTLY, nightly
from msgbubbles_sync.sandbox import NewMessage, serve
from msgbubbles_sync.workspace import Workspace

NewJob = Callable[..., Job]
# The account's name before the keys that the tables have.
KEYS = {"msgbubbles.chats": "id", "msgbubbles.messages": "id", "marts.thread_activity": "chat_id"}


@dataclass
class Company:
    """One command for all of its accounts."""

    jobs: dict[str, Job]
    environment: Mapping[str, str]
    # Other keys than those that the API knows.
    keys: dict[str, str] = field(default_factory=dict)
    # As for a job: the nodes that a command of dbt selects.
    selected: dict[str, str] = field(default_factory=dict)

    def start(self, *options: str, script: str = "chats.py") -> subprocess.Popen[str]:
        job = next(iter(self.jobs.values()))
        environment = {**job.whole_environment(), **self.environment}
        del environment["SOURCES__MSGBUBBLES__API_KEY"]
        for name, one in self.jobs.items():
            environment[f"ACCOUNTS__{name.upper()}__API_KEY"] = self.keys.get(name, one.server.key)
            environment[f"ACCOUNTS__{name.upper()}__BASE_URL"] = one.server.url
        selecting = ["-c", SELECTING, json.dumps(self.selected)] if self.selected else []
        return Process(
            [sys.executable, *selecting, str(CHATS.with_name(script)), *options, "--database", "company.duckdb"],
            cwd=job.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *options: str, status: int = 0, script: str = "chats.py") -> tuple[str, str]:
        process = self.start(*options, script=script)
        output, errors = process.communicate(timeout=900)
        assert process.returncode == status, (output, errors)
        return output, errors

    def run_at_once(self, *options: str) -> None:
        """Run a job for each account, all at the same time."""
        processes = [self.start(*options, "--account", name, "--quiet") for name in self.jobs]
        for process in processes:
            _, errors = process.communicate(timeout=900)
            assert process.returncode == 0, errors

    def workspace(self, destination: str = "duckdb") -> Workspace:
        return Workspace.from_path(next(iter(self.jobs.values())).database, destination)


def company(new_job: NewJob, *names: str, **environment: str) -> Company:
    sizes = {name: 200 + 20 * number for number, name in enumerate(names)}
    return Company({name: new_job(chats=30, messages=size) for name, size in sizes.items()}, environment)


def check_shown(made: Company, query: Callable[[str], list[Any]], *, marts: bool = True) -> None:
    """Check that the combined tables show every row of each account once."""
    assert query("SELECT account FROM msgbubbles.accounts ORDER BY account") == [(name,) for name in sorted(made.jobs)]
    for table, key in KEYS.items():
        if table.startswith("marts") and not marts:
            continue
        of = "messages" if table.endswith("messages") else "chats"
        assert sorted(query(f"SELECT account, {key} FROM {table}")) == sorted(
            (name, row["id"]) for name, job in made.jobs.items() for row in getattr(job.server.truth(), of)
        )


def query_file(database: Path, sql: str) -> list[Any]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def say_something(job: Job) -> None:
    chat = job.server.truth().chats[0]["id"]
    job.server.account.add_message(NewMessage(chat, "outbound", "hello", datetime.now(UTC), "sent"))


def test_account_that_is_refused_stops_no_other(new_job: NewJob) -> None:
    made = company(new_job, "north", "south")
    made.keys["north"] = "sk_test_of_nobody"

    query = partial(query_file, made.workspace().database)
    output, _ = made.run("--json", "--no-transform", status=1)
    records = {record["account"]: record for record in map(json.loads, output.splitlines())}
    outcomes = {name: record["outcome"] for name, record in records.items()}
    assert outcomes == {"north": "failed", "south": "complete"}
    assert "401" in records["north"]["error"]
    runs = "SELECT account, outcome, exit_status FROM msgbubbles.sync_runs ORDER BY account, started_at"
    assert query(runs) == [("north", "failed", 1), ("south", "complete", 0)]

    made.keys = {"south": "sk_test_of_nobody"}  # which has been loaded
    output, _ = made.run("--no-transform", status=1)
    assert re.search(r"(?m)^north:\nstream .*\n(\w+ .*\n)*messages ", output)
    check_shown(made, query, marts=False)
    last = "SELECT account, arg_max(outcome, started_at) FROM msgbubbles.sync_runs GROUP BY account ORDER BY account"
    assert query(last) == [("north", "complete"), ("south", "failed")]
    made.keys.clear()

    output, _ = made.run("status", "--max-age-minutes", "10")
    assert output.count("Fresh as of") == 2
    assert "south:\nFresh as of" in output


# By day, test_attached.py has several accounts in a lake, and the next tests jobs of two.
@nightly
def test_two_jobs_for_two_accounts_in_one_lake(
    new_job: NewJob, postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = lake_at(postgres_address, tmp_path / "lake")
    for name, value in lake.items():
        monkeypatch.setenv(name, value)
    made = company(new_job, "north", "south", **lake)
    into = ("--destination", "ducklake")

    def query(sql: str) -> list[Any]:
        with build_destination(made.workspace("ducklake")).open_reader() as connection:
            return connection.execute(sql).fetchall()

    def list_plans() -> dict[Path, int]:
        folder = made.workspace().folder.parent
        return {path: path.stat().st_mtime_ns for path in folder.rglob("plan.json")}

    # The second runs find the views of the first ones.
    for marts in (False, False, True, True, True):
        plans = list_plans()
        made.run_at_once(*into, *(() if marts else ("--no-transform",)))
        check_shown(made, query, marts=marts)
        for job in made.jobs.values():
            say_something(job)
    assert list_plans() == plans, "the last runs did without dbt"
    assert len(plans) == 2
    output, _ = made.run("verify", "--full", *into)
    assert output.count(": equal") == 2


def test_two_jobs_for_two_accounts_in_one_folder(new_job: NewJob, tmp_path: Path) -> None:
    made = company(new_job, "north", "south", DESTINATION__FILESYSTEM__BUCKET_URL=str(tmp_path / "lake"))
    into = ("--destination", "filesystem", "--no-transform")

    query = partial(query_file, tmp_path / "lake" / "warehouse.duckdb")
    for _ in range(2):
        made.run_at_once(*into)
        check_shown(made, query, marts=False)
        for job in made.jobs.values():
            say_something(job)
    output, _ = made.run("verify", "--full", *into[:2])
    assert output.count(": equal") == 2
    del made.jobs["south"]
    made.keys["north"] = "sk_test_of_nobody"
    made.run(*into, status=1)
    outcomes = query("SELECT account, outcome FROM msgbubbles.sync_runs ORDER BY account, started_at")
    assert outcomes == [("north", "complete")] * 2 + [("north", "failed")] + [("south", "complete")] * 2


@contextmanager
def asked_all_the_time(address: str, sql: str) -> Iterator[list[Any]]:
    """Query some fifty times a second until the block ends, and yield the answers. An error is raised at the end."""
    answers: list[Any] = []
    done = threading.Event()

    def ask() -> None:
        connection = psycopg2.connect(address)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                while not done.wait(0.02):
                    cursor.execute(sql)
                    answers.append(cursor.fetchall())
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield answers
        finally:
            done.set()
        asking.result()


def test_two_jobs_for_two_accounts_on_one_server(new_job: NewJob, postgres_address: str) -> None:
    made = company(new_job, "north", "south", DESTINATION__POSTGRES__CREDENTIALS=postgres_address)
    into = ("--destination", "postgres")

    def query(sql: str) -> list[Any]:
        connection = psycopg2.connect(postgres_address)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    if not IS_NIGHTLY:  # test_postgres.py builds all marts on a server
        made.selected = {"run": "+thread_activity +thread_activity_daily +contact"}
    made.run(*into)
    check_shown(made, query)
    query("CREATE SCHEMA mine")
    query("CREATE VIEW mine.threads AS SELECT account, chat_id FROM marts.thread_activity")
    query("CREATE VIEW mine.people AS SELECT account, handle FROM marts.contact")

    say_something(made.jobs["north"])
    accounts = "SELECT DISTINCT account FROM marts.thread_activity ORDER BY account"
    # A table, not a view: the answers to fifty queries a second would take a core.
    with asked_all_the_time(postgres_address, accounts.replace("activity", "activity_daily")) as answers:
        made.run(*into, "--account", "north")
    assert len(answers) > 20
    assert {str(answer) for answer in answers} == {str([("north",), ("south",)])}
    check_shown(made, query)
    assert query("SELECT DISTINCT account FROM mine.threads ORDER BY account") == [("north",), ("south",)]
    assert query("SELECT DISTINCT account FROM mine.people ORDER BY account") == [("north",), ("south",)]
    assert made.run("verify", "--full", *into)[0].count(": equal") == 2
    states = [json.loads(line) for line in made.run("status", "--json", *into)[0].splitlines()]
    assert [state["account"] for state in states] == ["north", "south"]

    query("DROP SCHEMA north_marts CASCADE")  # with the views of all accounts on it
    say_something(made.jobs["south"])
    made.run(*into, "--account", "south", "--no-transform")
    assert query(accounts) == [("south",)], "what is there is shown"


def test_who_is_erased_from_an_account_is_in_no_file_that_shows_it(new_job: NewJob, tmp_path: Path) -> None:
    account, _ = build_canary_account(now())
    chats = "SELECT id FROM chats WHERE remote_handle = :handle"
    texts = f"SELECT text FROM messages WHERE sender = :handle OR chat_id IN ({chats})"
    sought = [ANN.removeprefix("+"), *(row["text"] for row in account.all(texts, {"handle": ANN}))]
    with serve(account) as server:
        jobs = {"north": Job(tmp_path, server), "south": new_job(chats=10, messages=50)}
        made = Company(jobs, {"SOURCES__MSGBUBBLES__PRIVACY__KEY": PRIVACY_KEY})
        made.run("--account", "north")
        made.run("--account", "south", "--no-transform")
        check_shown(made, partial(query_file, made.workspace().database), marts=False)
        work = ".msgbubbles/company_north/company_north.duckdb"
        assert {file for files in find_words(tmp_path, sought).values() for file in files} == {
            "company.duckdb", "company_north.duckdb", work,
        }  # fmt: skip
        # Of somebody who was killed while the file of all was made.
        shutil.copy(tmp_path / "company.duckdb", tmp_path / ".company.duckdb.1.publishing")

        certificate = json.loads(made.run("erase", ANN, "--account", "north", "--yes", "--json")[0])
        assert certificate["people"] == 1
        assert find_words(tmp_path, sought) == {}
        made.run("--no-transform")
        assert find_words(tmp_path, sought) == {}
    account.close()
    with duckdb.connect(str(tmp_path / "company.duckdb"), read_only=True) as connection:
        for table, accounts in (("msgbubbles.messages", ["north", "south"]), ("marts.contact", ["north"])):
            found = connection.execute(f"SELECT DISTINCT account FROM {table} ORDER BY account").fetchall()
            assert found == [(account,) for account in accounts]
    assert [path for path in tmp_path.rglob("*.duckdb") if path.stat().st_mode & 0o077] == []


def test_a_warehouse_of_one_account_goes_on_as_one_of_several(new_job: NewJob) -> None:
    made = company(new_job, "north", "south")
    north = made.jobs["north"]
    north.run()
    _, errors = made.run("--account", "north", "--no-transform", status=2)
    assert "company.duckdb holds an account without a name. If it is north," in errors
    for line in errors.splitlines():
        if line.startswith("  "):
            subprocess.run(shlex.split(line), check=True)
    asked = len(north.server.requests)
    say_something(north)
    made.run("--no-transform")
    assert len(north.server.requests) - asked <= 4, "nothing is read a second time"
    with duckdb.connect(str(north.database), read_only=True) as connection:
        found = connection.execute("SELECT account, count(*) FROM msgbubbles.messages GROUP BY account").fetchall()
        assert dict(found) == {name: len(job.server.truth().messages) for name, job in made.jobs.items()}
    assert made.run("verify", "--full", "--account", "north")[0].startswith("Compared")
    assert len([*north.folder.glob(".msgbubbles/company_north/*.duckdb")]) == 1, "what nobody needs is not left there"

    # And not the other way round.
    assert "company.duckdb shows several accounts" in north.run(status=2).errors


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "several accounts are configured. Choose one: --account north or south"),
        ({"MSGBUBBLES_ACCOUNT": "west"}, "--account west: the configured accounts are north, south"),
    ],
)
def test_what_is_about_one_account_asks_which(new_job: NewJob, environment: dict[str, str], says: str) -> None:
    made = company(new_job, "north", "south", **environment)
    _, errors = made.run("erase", "+14155550100", status=2)
    assert says in errors


def test_webhooks_and_groups_are_of_one_account(new_job: NewJob) -> None:
    made = company(new_job, "north", "south")
    endpoint = "http://127.0.0.1:8484/"
    _, errors = made.run("register", endpoint, status=2, script="webhooks.py")
    assert "several accounts are configured" in errors
    made.run("register", endpoint, "--account", "north", script="webhooks.py")
    listed = {name: made.run("list", "--account", name, script="webhooks.py")[0] for name in made.jobs}
    assert [endpoint in listed[name] for name in ("north", "south")] == [True, False]
    folder = made.jobs["north"].folder
    assert "whsec_" in (folder / ".msgbubbles" / "company_north" / "webhooks" / "secrets.toml").read_text()

    number = made.jobs["south"].server.truth().numbers[0]["handle"]
    (folder / "groups.csv").write_text(
        f'key,from_handle,title,addresses,message\nteam,{number},Team,"+14155550111, ben@example.com",Hello\n'
    )
    made.run("--no-transform")
    made.run("apply", "groups.csv", "--yes", "--account", "south", script="groups.py")
    made.run("--no-transform")
    with duckdb.connect(str(folder / "company.duckdb"), read_only=True) as connection:
        found = connection.execute("SELECT account, key, outcome FROM msgbubbles.group_operations").fetchall()
    assert found == [("south", "team", "succeeded")]
