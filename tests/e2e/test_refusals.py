"""Each refusal names the fault and its fix, with its own exit status, and shows no traceback, key or handle.

When the fault is fixed, the next run completes and nothing is lost.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from helpers.damage import DAMAGE
from helpers.job import CHATS, Job, Outcome
from helpers.process import Process, inherited_environment, run_process
from helpers.warehouse_rows import differences
from msgbubbles_sync.sandbox import Knobs, NewMessage

NewJob = Callable[..., Job]

# Runs a script that waits a moment for the reader of its output, and not as long as it may.
IMPATIENT = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from msgbubbles_sync.cli import output

output.PATIENCE_SECONDS = 0.1
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HANDLE = re.compile(r"\+\d{8,}|person\d+@")


def refused(job: Job, *options: str, status: int = 1) -> str:
    """Run the job, which ends with this status, and return its output."""
    return get_output(job, job.run(*options, status=status))


def get_output(job: Job, outcome: Outcome) -> str:
    output = f"{outcome.errors.strip()}\n{outcome.summary.get('error') or ''}"
    sys.stdout.write(f"{output}\n\n")  # `pytest -rP` shows them all
    assert "Traceback" not in output
    assert job.server.key not in output + json.dumps(outcome.summary)
    assert not HANDLE.search(output)
    return output


def command(job: Job, name: str, *options: str) -> tuple[int, str]:
    """Run another command than sync, and return its exit status and output."""
    environment = {
        **inherited_environment(),
        "SOURCES__MSGBUBBLES__API_KEY": job.server.key,
        "SOURCES__MSGBUBBLES__BASE_URL": job.server.url,
        "SOURCES__MSGBUBBLES__REQUESTS_PER_MINUTE": "0",
        **job.environment,
    }
    done = run_process(
        [sys.executable, str(CHATS), name, "--database", str(job.database), *options],
        env=environment,
        capture_output=True,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def completes(job: Job) -> None:
    job.run()
    assert differences(job.database, job.server.truth()) == {}


def write_something(job: Job, count: int = 1) -> None:
    chat_id = job.server.truth().chats[0]["id"]
    now = datetime.now(UTC)
    job.server.account.add_messages(
        NewMessage(chat_id, "inbound", f"{number} " * 300, now - number * timedelta(milliseconds=1), "received")
        for number in range(count)
    )


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)  # noqa: S607
    if done.returncode:
        pytest.skip("only root may mount")
    try:
        if "--bind" in options:  # the kernel takes it read-only in a second step only
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)  # noqa: S607
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607


def test_a_key_or_an_account_that_is_refused(new_job: NewJob) -> None:
    job = new_job(Knobs(keys={"sk_test_other"}))
    assert "check the API key" in refused(job)
    status, printed = command(job, "check")
    assert (status, "check the API key" in printed) == (3, True)
    job.server.knobs.keys, job.server.knobs.active = {job.server.key}, False
    assert "the account is not active" in refused(job)
    job.server.knobs.active = True
    completes(job)


def test_a_host_that_cannot_be_reached(new_job: NewJob) -> None:
    job = new_job()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        for address, says in (
            ("http://127.0.0.1", "nothing listens on 127.0.0.1"),
            ("https://nowhere.invalid", "no host nowhere.invalid"),
        ):
            url = f"{address}:{taken.getsockname()[1]}/v1"
            job.environment |= {"SOURCES__MSGBUBBLES__BASE_URL": url, "SOURCES__MSGBUBBLES__MAX_ATTEMPTS": "2"}
            output = refused(job)
            assert says in output
            assert "check base_url" in output
    job.environment.clear()
    completes(job)


def test_a_disk_that_is_full(new_job: NewJob) -> None:
    job = new_job(messages=2000)
    disk = job.folder / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=40m", "tmpfs"):
        job = replace(job, folder=disk)
        job.run()
        write_something(job, 2000)
        ballast = disk / "ballast"
        free = shutil.disk_usage(disk).free
        ballast.write_bytes(bytes(free - 1_500_000))
        output = refused(job)
        assert "no space left" in output
        ballast.unlink()
        completes(job)


def test_a_file_that_may_not_grow(new_job: NewJob) -> None:
    job = new_job(messages=2000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        process = job.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    outcome = job.finish(process)
    assert outcome.status == 1
    assert "no space left" in get_output(job, outcome)
    completes(job)


def test_a_destination_that_is_read_only(loaded_job: Job) -> None:
    job = loaded_job
    write_something(job)
    with mounted(job.folder, "--bind", str(job.folder)):
        output = refused(job)
        assert "cannot be written" in output
        assert "--database" in output
        status, printed = command(job, "check")
        assert (status, "make the folder writable" in printed) == (3, True)
    completes(job)


def torn(path: Path) -> None:
    path.write_bytes(b"\xff\xfe neither this nor that \x00" * 400)


def restored(job: Job, path: Path) -> None:
    """See that a run restores a damaged file by itself, and says so."""
    outcome = job.run()
    assert f"{path} was damaged" in outcome.errors
    assert differences(job.database, job.server.truth()) == {}


def test_damaged_files_of_the_job_are_restored_by_the_next_run(loaded_job: Job) -> None:
    job = loaded_job
    folder = job.folder / ".msgbubbles" / "company"
    dlt = folder / "dlt" / "msgbubbles"
    for name, kind in (("state.json", "half"), ("load/.version", "random")):
        write_something(job)
        DAMAGE[kind](dlt / name)
        restored(job, dlt)
    write_something(job)
    DAMAGE["empty"](folder / "account.json")
    DAMAGE["half"](folder / "company.duckdb")
    restored(job, folder / "account.json")
    assert len(list(folder.glob("*.damaged-*"))) == 2
    assert list((folder / "dlt").glob("*/load/loaded/*")) == []


def test_damaged_package_that_waits_to_be_loaded_is_read_again(loaded_job: Job) -> None:
    job = loaded_job
    write_something(job, 50)
    job.need_dlt()
    dlt = job.folder / ".msgbubbles" / "company" / "dlt"
    process = job.start()
    while not (found := list(dlt.glob("msgbubbles/load/normalized/*/new_jobs/messages*"))):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    for path in dlt.glob("msgbubbles/load/normalized/*/*_jobs/messages*"):
        torn(path)
        found.append(path)
    assert len(found) > 1, "it was still there"
    restored(job, dlt / "msgbubbles")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, "SSL_CERT_FILE: /nowhere/ca.pem cannot be read"),
        (
            {"NO_PROXY": "localhost,[::1]", "SOURCES__MSGBUBBLES__BASE_URL": "https://nowhere.invalid/v1"},
            "NO_PROXY: [::1] cannot be read; write an IPv6 address without brackets, as ::1",
        ),
        (
            {"SOURCES__MSGBUBBLES__REQUESTS_PER_MINUTE": "-5"},
            "requests_per_minute must be a whole number of at least 0",
        ),
    ],
)
def test_environment_that_cannot_be_used_is_named(new_job: NewJob, environment: dict[str, str], says: str) -> None:
    job = new_job(chats=0)
    job.environment |= environment
    output = refused(job, status=2)
    assert says in output
    assert "remove" not in output


def test_output_that_nobody_can_read_does_not_fail_a_run(new_job: NewJob) -> None:
    job = new_job()
    reading, writing = os.pipe()
    os.close(reading)
    for streams in ({"stdout": writing, "stderr": writing}, {"preexec_fn": lambda: os.closerange(0, 3)}):
        write_something(job)
        environment = job.whole_environment() | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
        command = [sys.executable, str(CHATS), "--no-transform", "--database", str(job.database)]
        assert subprocess.run(command, env=environment, timeout=300, check=False, **streams).returncode == 0
        assert differences(job.database, job.server.truth()) == {}
    os.close(writing)


@pytest.mark.parametrize("command", [("sync", "--no-transform"), ("watch", "--every", "1")])
def test_output_that_waits_for_a_reader_stops_no_run(new_job: NewJob, command: tuple[str, ...]) -> None:
    job = new_job(chats=3, messages=10)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for text in (b"x" * 4096, b"x"):
        with suppress(BlockingIOError):
            while os.write(writing, text):
                pass
    os.set_blocking(writing, True)
    process = Process(
        [sys.executable, "-c", IMPATIENT, str(CHATS), *command, "--json", "--database", str(job.database)],
        env=job.whole_environment(), stdout=writing, stderr=writing,
    )  # fmt: skip
    until = time.monotonic() + 300
    try:
        while command[0] == "watch" and not (job.database.exists() and len(job.ask("status")["runs"]) > 1):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        if command[0] == "watch":
            process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    finally:
        process.kill()
    assert differences(job.database, job.server.truth()) == {}
    os.close(reading)
    os.close(writing)


def test_path_with_characters_that_queries_quote_is_loaded_and_published(new_job: NewJob) -> None:
    job = new_job(chats=3, messages=10)
    database = job.folder / 'O\'Neil "a" day=1' / "a[1]{b}=2.duckdb"
    database.parent.mkdir()
    for transform in (False, True):
        write_something(job)
        job.run("--database", str(database), transform=transform)
        assert differences(database, job.server.truth()) == {}
    job.ask("verify", "--full", "--database", str(database))


def test_deleted_working_directory_ends_no_run(new_job: NewJob, tmp_path: Path) -> None:
    job = new_job()
    for database, status in ((str(job.database), 0), ("company.duckdb", 2)):
        write_something(job)
        (tmp_path / "gone").mkdir()
        command = ["bash", "-c", 'rmdir "$PWD"; exec "$@"', "bash", sys.executable, str(CHATS), "--no-transform"]
        done = subprocess.run(
            [*command, "--database", database], cwd=tmp_path / "gone", env=job.whole_environment(),
            timeout=300, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, "working directory was deleted" in done.stderr) == (status, status == 2), done.stderr
        assert status or differences(job.database, job.server.truth()) == {}


def test_second_signal_ends_at_once_and_loses_nothing(new_job: NewJob) -> None:
    job = new_job()
    begun = threading.Event()
    job.server.knobs.latency_seconds = 15.0
    job.server.knobs.on_request = lambda *_: begun.set()
    process = job.start()
    assert begun.wait(60)
    for number in (signal.SIGINT, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.2)
    assert job.finish(process).status == 130
    assert job.server.requests == [], "it ends sooner than the answer"
    job.server.knobs.latency_seconds = 0.0
    completes(job)


def test_a_database_that_is_lost_takes_what_dlt_remembers_of_it_along(loaded_job: Job) -> None:
    """Killed between load and publish, dlt remembers rows that only the job's own database had."""
    job = loaded_job
    published = job.database.read_bytes()
    write_something(job, 150)
    job.run()
    job.database.write_bytes(published)
    (job.folder / ".msgbubbles" / "company" / "company.duckdb").unlink()
    completes(job)


def test_a_damaged_journal_costs_its_lines_only(loaded_job: Job) -> None:
    job = loaded_job
    torn(job.folder / ".msgbubbles" / "company" / "runs.jsonl")
    assert command(job, "status")[0] == 0
    write_something(job)
    completes(job)


def test_a_damaged_account_of_the_sandbox(new_job: NewJob) -> None:
    job = new_job(chats=0)
    job.run("--sandbox")
    state = job.folder / ".msgbubbles" / "company" / "sandbox.sqlite"
    for leftover in state.parent.glob("sandbox.sqlite-*"):
        leftover.unlink()
    torn(state)
    output = refused(job, "--sandbox", status=2)
    assert f"{state} cannot be read" in output
    assert "Remove it" in output
    assert "UsageError" not in output


# A later release: its state has another version.
NEWER = """
import os, runpy, sys

sys.path.insert(0, os.path.dirname(sys.argv[1]))
from msgbubbles.source import state

state.STATE_VERSION += 1
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_state_from_a_newer_version(new_job: NewJob) -> None:
    job = new_job()
    run = [sys.executable, "-c", NEWER, str(CHATS), "--sandbox", "--no-transform", "--database", str(job.database)]
    run_process(run, env=inherited_environment(), capture_output=True, check=True)
    published = job.database.read_bytes()

    def check_refused(*options: str, **commands: int) -> None:
        output = refused(job, *options, status=2)
        assert "newer version" in output
        assert "upgrade" in output
        assert job.database.read_bytes() == published
        for name, status in commands.items():
            found, printed = command(job, name)
            assert (name, found, "upgrade" in printed) == (name, status, True)

    check_refused("--sandbox", status=2, check=3)
    shutil.rmtree(job.folder / ".msgbubbles")
    check_refused(plan=2)


@pytest.mark.parametrize("name", ["config.toml", "secrets.toml"])
def test_configuration_that_is_no_toml_is_named_with_its_line(new_job: NewJob, name: str, tmp_path: Path) -> None:
    job = new_job(chats=0)
    folder = tmp_path / "project" / "dlt_config"
    folder.mkdir(parents=True)
    (folder / name).write_text('[sources.msgbubbles]\n# the key\napi_key = sk_live_hush "\n')
    job.environment |= {"DLT_PROJECT_DIR": str(folder.parent), "DLT_CONFIG_FOLDER": "dlt_config"}
    output = refused(job, status=2)
    assert f"dlt_config/{name}:3 is not TOML" in output
    assert "hush" not in output
    status, printed = command(job, "plan")
    assert (status, f"{name}:3" in printed, "hush" in printed) == (2, True, False)


def test_a_published_file_that_is_no_database(loaded_job: Job) -> None:
    job = loaded_job
    torn(job.database)
    for name, options, status in (("status", [], 2), ("verify", ["--full"], 2), ("check", [], 3)):
        found, printed = command(job, name, *options)
        assert (name, found, "cannot be read as a DuckDB database: it is damaged" in printed) == (name, status, True)
    job.database.unlink()
    assert command(job, "report") == (2, f"{job.database} has no tables. Run chats.py first.")
    write_something(job)
    completes(job)
    with duckdb.connect(str(job.database), read_only=True) as database:
        assert database.execute("SELECT count(*) > 0 FROM msgbubbles.sync_runs").fetchall() == [(True,)]
