"""Look for personal data in every file that the product writes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import duckdb
import psycopg2
import pytest

from helpers import postgres
from helpers.canary import ANN, BEN, KEY, OURS, PEOPLE, PRIVACY_KEY, build_canary_account, find_words, now, spellings
from helpers.hooks import WEBHOOKS, Process
from helpers.job import Job
from helpers.lake import lake_at
from helpers.process import run_process
from helpers.sizes import IS_NIGHTLY, nightly
from msgbubbles.policy import FULL, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles_sync.sandbox import Knobs, NewMessage, serve
from msgbubbles_sync.tables import TABLES

# Takes another minute: ten syncs after an erasure, and a comparison with the marts of an account without that person.
WHOLE = IS_NIGHTLY or "MSGBUBBLES_WHOLE" in os.environ
Found = dict[str, list[str]]
# Files that the user wrote.
NOT_THE_PRODUCTS = ("secrets.toml", "table.yml", "contacts.csv")
TABLE = f"""
- key: ours
  from_handle: {OURS}
  title: canary title of ours
  addresses: [{ANN}, {BEN}]
  message: canary text of ours
"""
GROUPS = WEBHOOKS.with_name("groups.py")
WORK = ".msgbubbles/company/company.duckdb"
DATABASE = ("--database", "company.duckdb")


def list_contacts(folder: Path) -> dict[str, str]:
    """Write a list in which everybody has a contact, and return the variable that names it."""
    path = folder / "contacts.csv"
    path.write_text("\n".join(["handle,contact", *(f"{handle},canary contact {handle}" for handle in PEOPLE)]))
    return {"TRANSFORMS__CONTACT_ALIASES": str(path)}


@contextmanager
def canaries(folder: Path, preset: str) -> Iterator[tuple[Job, dict[str, list[str]]]]:
    folder.mkdir(mode=0o700, exist_ok=True)
    account, words = build_canary_account(now())

    def spoiled(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        # One message has no id, one no timestamp: neither can be parsed.
        if kind == "messages" and row["text"] in ("canary text 004", "canary text 006"):
            spoils_id = row["text"].endswith("4")
            return {**row, "id": None} if spoils_id else {**row, "created_at": "canary text 004"}
        return row

    knobs = Knobs(
        keys={KEY}, extra_fields={"unknown": {"note": "canary of an unknown field", "handle": ANN}},
        transform_row=spoiled, server_errors=0.1, cut_bodies=0.1,
    )  # fmt: skip
    with serve(account, knobs) as server:
        job = Job(folder, server)
        job.environment = {
            "SOURCES__MSGBUBBLES__API_KEY": KEY,
            "SOURCES__MSGBUBBLES__READ_PARTICIPANTS": "true",
            "SOURCES__MSGBUBBLES__PRIVACY__PRESET": preset,
            "SOURCES__MSGBUBBLES__PRIVACY__KEY": PRIVACY_KEY,
            **list_contacts(folder),
        }
        yield job, words
    account.close()


@contextmanager
def receiving(job: Job) -> Iterator[Process]:
    secrets = job.folder / "secrets.toml"
    process = Process(job.folder, job.whole_environment(), *DATABASE, "--secrets-file", str(secrets))
    try:
        register = [sys.executable, str(WEBHOOKS), "register", process.url, *DATABASE, "--secrets-file", str(secrets)]
        run_process(register, cwd=job.folder, env=job.whole_environment(), check=True, capture_output=True)
        yield process
    finally:
        process.stop()


def run_through_faults(job: Job) -> tuple[str, Found]:
    """Run the job with faults, rejected rows, events and kills. Returns all its output, and the words in the spool."""
    account, output = job.server.account, []
    (job.folder / "secrets.toml").write_text('[webhooks]\nsecrets = ["whsec_b2Y="]\n')
    with receiving(job) as receiver:
        found = account.all("SELECT id FROM chats WHERE remote_handle IN (?, 'group:1') ORDER BY is_group", (ANN,))
        chat, group = (row["id"] for row in found)
        for number, payload in enumerate(("nested", "flat", "ids")):
            job.server.knobs.webhook_payload = payload  # type: ignore[assignment]
            account.type(group, BEN, True, now())
            message = NewMessage(chat, "inbound", f"canary text 9{number}0", now(), "received", sender=ANN)
            account.react(account.add_message(message), ANN, "canary note 900", now() + timedelta(seconds=number))
        assert job.server.deliverer.wait_until_delivered(60)
        receiver.kill()
        spooled = find_words(job.folder / ".msgbubbles", ("canary", "evt_"))
        assert spooled["evt_"]
        receiver.start()
    job.start_anew = True  # its command line is looked at
    killed = job.start()
    job.start_anew = False
    until = time.monotonic() + 60
    while not any((job.folder / ".msgbubbles").rglob("*.parquet")) and killed.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    arguments = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert any(b"chats.py" in one for one in arguments)
    assert not [one for one in arguments if KEY.encode() in one or PRIVACY_KEY.encode() in one]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (job.folder / "table.yml").write_text(TABLE)
    apply = [sys.executable, str(GROUPS), "apply", "table.yml", "--yes", *DATABASE]
    for _ in range(2):
        applied = run_process(apply, cwd=job.folder, env=job.whole_environment(), check=True, capture_output=True)
        output += [applied.stdout, applied.stderr]
    assert "Nothing changed" in applied.stdout
    done = job.run(status=3)
    assert done.summary["tables"]["rejected_rows"]["new"] or done.summary["streams"]["messages"]["rejected"]
    output += [json.dumps(done.summary), done.errors]
    return "\n".join(output), spooled


def test_dropped_data_is_in_no_file(tmp_path: Path) -> None:
    with canaries(tmp_path / "job", "minimal") as (job, words):
        vault = tmp_path / "vault.sqlite"
        job.environment["SOURCES__MSGBUBBLES__PRIVACY__VAULT"] = str(vault)
        output, spooled = run_through_faults(job)
        work = job.folder / ".msgbubbles" / "company" / "company.duckdb"
        work.write_bytes(b"no database")
        restored = job.run(status=3)
        with duckdb.connect(str(work)):
            crashed = job.run(status=1)
        output += "".join(json.dumps(one.summary) + one.errors for one in (restored, crashed))
        everything = [KEY, PRIVACY_KEY, *(word for kind in words.values() for word in kind), "canary"]
        found = find_words(job.folder, everything, NOT_THE_PRODUCTS)
        assert not [word for word in everything if word in output]
        names = [Pseudonymizer(PRIVACY_KEY).handle(one) for one in (*PEOPLE, OURS)]
        looked_up = job.ask("privacy", "lookup", *names)
    assert list(looked_up.values()) == [*PEOPLE, OURS], "in the vault, and nowhere else"
    written = [path for path in tmp_path.rglob("*") if path.name not in NOT_THE_PRODUCTS]
    others_may = [path for path in written if path.stat().st_mode & 0o077]
    assert others_may == []
    assert "canary" not in spooled
    assert found == {}


def tables_of(job: Job) -> dict[str, list[str]]:
    """Return the rows of all tables and marts, without columns that depend on the run."""
    with duckdb.connect(str(job.database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        names = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema IN ('msgbubbles', 'marts') AND table_name NOT LIKE '\\_dlt%' ESCAPE '\\' "
            "AND table_name NOT IN ('sync_runs', 'privacy', 'erasures')"
        ).fetchall()
        found = {}
        for schema, table in names:
            rows = connection.execute(
                f"SELECT COLUMNS(c -> c NOT IN ({', '.join(map(repr, OF_THE_RUN))})) FROM {schema}.{table}"
            ).fetchall()
            found[f"{schema}.{table}"] = sorted(map(repr, rows))
        return found


def undecided(job: Job) -> list[tuple[str, str]]:
    """Return the columns of the tables that the registry does not list."""
    with duckdb.connect(str(job.database), read_only=True) as connection:
        found = connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE schema_name = 'msgbubbles' "
            "AND NOT (starts_with(table_name, '_dlt') OR starts_with(column_name, '_dlt'))"
        ).fetchall()
    return [one for one in found if one[0] not in TABLES or one[1] not in TABLES[one[0]].column_names]


OF_THE_RUN = (
    "_fetched_at", "_dlt_load_id", "asked_at", "fetched_at", "first_seen_at", "last_seen_at", "complete_to", "id",
    "valid_from", "chat_fetched_at", "messages_fetched_at", "messages_complete_to", "coverage_day", "computed_at",
    "first_contact_at", "last_contact_at", "is_current", "url",
)  # fmt: skip


def quoting(written: list[str], kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """Add a handle to fields of a row that hold none: which one depends on the id, so it is the same in each run."""
    number = crc32(str(row.get("id")).encode())
    one, other = written[number % len(written)], written[(number + 1) % len(written)]
    if kind == "messages":
        attachments = [file | {"mime_type": f"text/plain; of={one}"} for file in row["attachments"]]
        row = row | {"effect": one, "reply_to": other, "channel": one, "attachments": attachments}
    elif row.get("is_group"):
        row = row | {"remote_handle": f"{other};{one}"}
    return row | {one: {other: 1}}


def test_erased_person_is_in_no_file_and_never_returns(tmp_path: Path) -> None:
    at = now()
    job_of = partial(Job, environment={
        "SOURCES__MSGBUBBLES__READ_PARTICIPANTS": "true", "SOURCES__MSGBUBBLES__PRIVACY__KEY": PRIVACY_KEY,
    })  # fmt: skip
    account, words = build_canary_account(at)
    theirs = "sender = :handle OR chat_id IN (SELECT id FROM chats WHERE remote_handle = :handle)"
    texts = [row["text"] for row in account.all(f"SELECT text FROM messages WHERE {theirs}", {"handle": ANN})]
    sought = [ANN.removeprefix("+"), *texts]
    (tmp_path / "with").mkdir()
    # Their handle is also in fields for other values, and the name of a field.
    with serve(account, Knobs(keys={KEY}, transform_row=partial(quoting, spellings(ANN)))) as server:
        server.key = KEY
        job = job_of(tmp_path / "with", server)
        job.run(transform=True)
        everything = [word for kind in words.values() for word in kind if word != "canary of an unknown field"]
        assert undecided(job) == []
        found = find_words(job.folder, [*everything, KEY, PRIVACY_KEY])
        assert found.keys() == set(everything)
        assert {file for files in found.values() for file in files} == {"company.duckdb", WORK}
        job.ask("erase", ANN, status=2)  # nobody can confirm
        certificate = job.ask("erase", ANN, "--yes")
        # Their messages are deleted; in others, each of the four columns that name them is changed.
        changed = 4 * (len(words["texts"]) - len(texts))
        assert (certificate["people"], certificate["rows"]["messages"]) == (1, len(texts) + changed)
        assert find_words(job.folder, sought) == {}
        erased = tables_of(job)
        for _ in range(10 if WHOLE else 1):
            assert job.run().summary["tables"]["messages"]["new"] == 0
        assert job.ask("verify", "--full")["equal"]
        assert find_words(job.folder, [*sought, *spellings(ANN)]) == {}
    marts = {"marts.contact", "marts.group_membership", "marts.thread_activity"}
    assert marts <= erased.keys()
    assert len(erased["marts.thread_activity"]) == 3
    # `verify` has compared all loaded rows.
    if WHOLE:
        for rows in (
            f"attachments WHERE message_id IN (SELECT id FROM messages WHERE {theirs})", f"messages WHERE {theirs}",
            "chats WHERE remote_handle = :handle", "participants WHERE handle = :handle",
        ):  # fmt: skip
            account.run(f"DELETE FROM {rows}", {"handle": ANN})
        (tmp_path / "without").mkdir()
        names = Pseudonymizer(PRIVACY_KEY)
        redactor = Redactor(FULL, names, frozenset({names.erased_handle(ANN)}))
        replaced = [redactor.replace_erased(one) for one in spellings(ANN)]
        with serve(account, Knobs(transform_row=partial(quoting, replaced))) as server:
            job = job_of(tmp_path / "without", server)
            job.run(transform=True)
            expected = tables_of(job)
        assert {table for table in expected if erased[table] != expected[table]} == set()
    account.close()


# In a lake, privacy/test_destinations.py looks for an erased person in the same files, in a third of the time.
# By day, privacy/test_destinations.py erases a person from a lake and a folder.
@pytest.fixture(params=["postgres", *(pytest.param(name, marks=nightly) for name in ("ducklake", "filesystem"))])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Return a destination, and the variables with which a job finds it. All its files are in `tmp_path`."""
    with postgres.running(tmp_path / "server") as address:
        folders = {"DESTINATION__FILESYSTEM__BUCKET_URL": str(tmp_path / "lake")}
        variables = {"DESTINATION__POSTGRES__CREDENTIALS": address} | lake_at(address, tmp_path / "lake")
        yield request.param, variables | folders


def find_in_files(folder: Path, words: Iterable[str]) -> Found:
    """Find words in the files of jobs, lakes and a server.

    PostgreSQL recycles its write-ahead log by itself, and its own log quotes statements that failed. The certificate of
    an erasure says so. DuckDB's extensions contain the word canary.
    """
    with psycopg2.connect(host=str(folder / "server"), user="postgres", dbname="postgres") as connection:
        connection.cursor().execute("CHECKPOINT")
    found = find_words(folder, words)
    places = {
        word: [file for file in files if not re.search("^server/(pg_wal/|log$)|/extensions/", file)]
        for word, files in found.items()
    }
    return {word: files for word, files in places.items() if files}


def test_erased_person_is_in_no_file_of_a_server_or_lake(
    tmp_path: Path, elsewhere: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    destination, environment = elsewhere
    into = ("--destination", destination)
    account, _ = build_canary_account(now())
    theirs = "sender = :handle OR chat_id IN (SELECT id FROM chats WHERE remote_handle = :handle)"
    texts = [row["text"] for row in account.all(f"SELECT text FROM messages WHERE {theirs}", {"handle": ANN})]
    written = spellings(ANN)
    with serve(account, Knobs(keys={KEY}, transform_row=partial(quoting, written))) as server:
        server.key = KEY
        job = Job(tmp_path / "job", server, environment | {"SOURCES__MSGBUBBLES__PRIVACY__KEY": PRIVACY_KEY})
        job.environment["SOURCES__MSGBUBBLES__READ_PARTICIPANTS"] = "true"
        job.environment |= list_contacts(tmp_path_factory.mktemp("list"))
        job.folder.mkdir()
        # In a folder, Spark would build the marts.
        job.run(*into, transform=destination != "filesystem")
        sought = [*texts, *written, f"canary contact {ANN}"]
        found = find_in_files(tmp_path, [*sought, f"canary contact {BEN}"])
        assert found.keys() >= {*texts, ANN, f"canary contact {ANN}", f"canary contact {BEN}"}
        if destination == "postgres":
            assert any(file.startswith("server/base/") for file in found[ANN])
        certificate = job.ask("erase", ANN, "--yes", *into)
        assert certificate["people"] == 1
        assert certificate["out_of_reach"]
        assert find_in_files(tmp_path, sought) == {}
        assert job.run(*into).summary["tables"]["messages"]["new"] == 0
        assert job.ask("verify", "--full", *into)["equal"]
        assert find_in_files(tmp_path, sought) == {}
    account.close()


def test_stricter_policy_is_applied_to_stored_rows(tmp_path: Path) -> None:
    with canaries(tmp_path, "full") as (job, words):
        job.server.knobs.server_errors = job.server.knobs.cut_bodies = 0
        job.run(status=3)
        (tmp_path / ".msgbubbles" / "company" / "webhooks" / "malformed").mkdir(parents=True)
        (tmp_path / ".msgbubbles" / "company" / "webhooks" / "malformed" / "1.jsonl").write_text("canary\n")
        for preset in ("analytics", "minimal"):
            job.environment["SOURCES__MSGBUBBLES__PRIVACY__PRESET"] = preset
            if preset == "analytics":
                refused = job.run(status=2)
                assert "privacy apply" in refused.errors
                assert refused.summary == {}, "no run has started"
            assert job.ask("privacy", "apply")["apply"]["messages"]
            # Under the policy, the API's rows equal the stored ones.
            assert job.ask("verify", "--full")["equal"]
        everything = [KEY, PRIVACY_KEY, *(word for kind in words.values() for word in kind), "canary"]
        assert find_words(tmp_path, everything, NOT_THE_PRODUCTS) == {}
