"""Make the fixtures of the upgrade test: what a user of the release before the rebuild has on disk.

    PYTHONPATH=pipelines:tests/support .venv/bin/python tests/upgrade/make_fixture.py

It was run once, at commit bbc6568, and runs only there: later commits have other modules and write other files, and a
fixture that the new code makes tests no upgrade. It stays here to say what is in the archives, and how that came about.
It talks only to a sandbox on this machine.

`plain.tar.xz` is stopped in mid-backfill, with intervals missing in chats and in messages. It has a failed read, a
rejected row, a ledger of groups with a failed and an unsettled operation, a dead letter, and events that no run has
loaded. `pseudonymous.tar.xz` has a privacy policy, a vault and an erased person; it is stopped in mid-backfill as well.

Each archive holds `.msgbubbles/` (the job's own files), `company.duckdb` (what readers open), `account.sqlite` (the
sandbox account that the rows came from), `groups.csv`, `secrets.toml`, and `facts.json`: what the test cannot read from
the published file.
"""
# ruff: noqa: I001
# mypy: ignore-errors
# Its imports are those of that commit, in the order that they have there.

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from hooks import WEBHOOKS, Process
from job import CHATS, Job
from msgbubbles.coverage import Coverage
from msgbubbles.walk import BEGINNING_MS  # codespell:ignore walk
from sandbox import Account, Knobs, NewMessage, seed, serve
from warehouse.known import Known
from warehouse.lock import one_job
from warehouse.place import Place

HERE = Path(__file__).parent
OURS = "+14155550100"
PRIVACY_KEY = "the key of the pseudonyms in a fixture"
DATABASE = ("--database", "company.duckdb")
FILES = (".msgbubbles", "company.duckdb", "account.sqlite", "groups.csv", "secrets.toml", "facts.json", "vault.sqlite")
Group = dict[str, str]


def main() -> None:
    for name, make in (("plain", plain), ("pseudonymous", pseudonymous)):
        with tempfile.TemporaryDirectory(prefix="msgbubbles-") as folder:
            make(Path(folder))
            pack(Path(folder), HERE / f"{name}.tar.xz")


# -- the one with everything in it


def plain(folder: Path) -> None:
    now = datetime.now(UTC)
    account = Account(folder / "account.sqlite")
    seed(account, now=now - timedelta(hours=3), chats=700, messages=2600, days=60)
    for number in range(2):  # chats without a message have no time by which they could be listed
        account.add_chat(OURS, f"+1415555019{number}", now - timedelta(days=3 + number))
    rejected = account.all("SELECT id FROM messages ORDER BY created_us DESC LIMIT 1 OFFSET 600")[0]["id"]
    unreadable = account.all("SELECT id FROM chats ORDER BY last_us DESC LIMIT 1 OFFSET 250")[0]["id"]

    def spoil(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "created_at": "yesterday"} if kind == "messages" and row["id"] == rejected else row

    def cut(path: str, body: bytes) -> bytes:
        return body[: len(body) // 2] if path == "/v1/chats" and unreadable.encode() in body else body

    with serve(account, Knobs(transform_row=spoil, transform_body=cut)) as server:
        job = Job(folder, server, {"SOURCES__MSGBUBBLES__MAX_ATTEMPTS": "2"})
        # Complete for the last days, but for a page of chats that the API cannot make.
        job.run("--since", f"{now - timedelta(days=30):%Y-%m-%d}", status=3)
        # All the rest, newest first, stopped after some pages of messages.
        job.run("--max-requests", "8", status=3)
        # More than the next run may read: an interval in the middle is missing.
        write(account, 450, now)
        apply_groups(job, group("north"), group("south"), group("east", "+14155550166"), unreachable="+14155550166")
        with subscribed(job) as receiver:
            happen(account, loaded(job))
            assert server.deliverer.wait_until_delivered(60)
            assert receiver.stop() == 0  # which lets go of what it has written
            write_dead_letters(job)
            job.run("--max-requests", "4", status=3, transform=True)
            # The ledger has since gone on, while another job had the warehouse: it has no copy of this. One operation
            # was done, and answered with an error.
            with one_job(Place.of(job.database).folder):
                apply_groups(job, group("north", title="North, renamed"), group("south", "+14155550144"))
                apply_groups(job, group("west"), is_answered=False)
            write_table(job, group("north", title="North, renamed"), group("south", "+14155550144"), group("west"))
            # And events wait in the spool.
            receiver.start()
            happen(account, loaded(job))
            assert server.deliverer.wait_until_delivered(60)
        forget_endpoints(account)
        facts = {"rejected_message": rejected, "missing": missing(job)}
        assert [len(found) for found in facts["missing"].values()] == [2, 2], facts
    account.close()
    (folder / "facts.json").write_text(json.dumps(facts | {"spooled": spooled(job)}, indent=1))


# -- the one with a privacy policy


def pseudonymous(folder: Path) -> None:
    now = datetime.now(UTC)
    account = Account(folder / "account.sqlite")
    seed(account, now=now - timedelta(hours=1), chats=120, messages=900, days=60, seed=8)
    with serve(account) as server:
        policy = {
            "PRESET": "analytics",
            "KEY": PRIVACY_KEY,
            "VAULT": str(folder / "vault.sqlite"),
        }
        job = Job(folder, server, {f"SOURCES__MSGBUBBLES__PRIVACY__{name}": value for name, value in policy.items()})
        job.run("--since", f"{now - timedelta(days=10):%Y-%m-%d}")
        job.run("--max-requests", "4")
        apply_groups(job, group("north"))
        with subscribed(job) as receiver:
            happen(account, loaded(job))
            assert server.deliverer.wait_until_delivered(60)
            assert receiver.stop() == 0
            job.run("--max-requests", "1", transform=True)
            person = account.one("SELECT remote_handle FROM chats WHERE NOT is_group ORDER BY last_us DESC LIMIT 1")
            erased = person["remote_handle"]
            job.ask("erase", erased, "--yes")
            receiver.start()
            happen(account, loaded(job))
            assert server.deliverer.wait_until_delivered(60)
        forget_endpoints(account)
        facts = {"erased": erased, "missing": missing(job), "key": PRIVACY_KEY}
    account.close()
    (folder / "facts.json").write_text(json.dumps(facts | {"spooled": spooled(job)}, indent=1))


# -- what happens in an account


def write(account: Account, count: int, now: datetime) -> None:
    """Add messages in known chats, newer than all others, and none so new that each run reads it again."""
    chance = random.Random(3)
    chats = account.all("SELECT id, remote_handle FROM chats WHERE NOT is_group ORDER BY id LIMIT 20")
    account.add_messages(
        NewMessage(
            chat_id=chat["id"],
            direction="inbound",
            text=f"Message {number}",
            at=now - timedelta(hours=2) + timedelta(seconds=12 * number),
            status="received",
            sender=chat["remote_handle"],
        )
        for number, chat in enumerate(chance.choices(chats, k=count))
    )


def happen(account: Account, messages: list[str]) -> None:
    """Cause events of several kinds, about messages that are loaded and about a new one."""
    *changed, reacted = messages
    now = datetime.now(UTC)
    for number, one in enumerate(changed):
        account.set_status(one, "read", now + timedelta(milliseconds=number))
    account.react(reacted, "+14155550123", "love", now)
    chat = account.all("SELECT c.* FROM chats c JOIN messages m ON m.chat_id = c.id WHERE m.id = ?", (reacted,))[0]
    for is_typing in (True, False):
        account.type(chat["id"], chat["remote_handle"], is_typing, now)
    account.add_message(NewMessage(chat["id"], "inbound", "I am new", now, "received", sender=chat["remote_handle"]))


# -- the commands


def run_command(job: Job, script: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, str(script), *arguments, *DATABASE],
        cwd=job.folder,
        env=job.whole_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


@contextmanager
def subscribed(job: Job) -> Iterator[Process]:
    secrets = job.folder / "secrets.toml"
    secrets.write_text('[webhooks]\nsecrets = ["whsec_b2Y="]\n')
    process = Process(job.folder, job.whole_environment(), *DATABASE, "--secrets-file", str(secrets))
    try:
        run_command(job, WEBHOOKS, "register", process.url, "--secrets-file", str(secrets))
        yield process
    finally:
        assert process.stop() == 0


def group(key: str, *more: str, title: str | None = None) -> Group:
    people = ["+14155550111", f"{key}@example.com", *more]
    return {"key": key, "from_handle": OURS, "title": title or key.title(), "addresses": ", ".join(people),
            "message": f"Hello, {key}!"}  # fmt: skip


def write_table(job: Job, *rows: Group) -> str:
    with (job.folder / "groups.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return "groups.csv"


def apply_groups(job: Job, *rows: Group, unreachable: str | None = None, is_answered: bool = True) -> None:
    """Apply a table. Where nothing is answered, it is done all the same."""
    knobs = job.server.knobs

    def fail_writes(method: str, _path: str) -> None:
        knobs.errors_after_acting = float(method != "GET")

    knobs.unreachable = {unreachable} if unreachable else set()
    knobs.refusal = None if is_answered else fail_writes
    status = 0 if is_answered and not unreachable else 3
    run_command(job, CHATS.with_name("groups.py"), "apply", write_table(job, *rows), "--yes", status=status)
    knobs.refusal, knobs.errors_after_acting = None, 0.0


# -- what the archives hold


def loaded(job: Job) -> list[str]:
    """Ids of some messages that are published, and that nobody has read."""
    with duckdb.connect(str(job.database), read_only=True) as connection:
        rows = connection.execute(
            "SELECT id FROM msgbubbles.messages WHERE status = 'delivered' ORDER BY created_at DESC LIMIT 5"
        ).fetchall()
    return [row[0] for row in rows]


def write_dead_letters(job: Job) -> None:
    """Leave a line in the spool that is no event, as of a disk that has lost a part of it."""
    folder = job.folder / ".msgbubbles" / "company" / "webhooks" / "spool"
    next(folder.glob("*.jsonl")).open("a").write('{"event_id": "evt_half", "received_at"\n')


def spooled(job: Job) -> list[str]:
    """Ids of the events that are still in the spool."""
    folder = job.folder / ".msgbubbles" / "company" / "webhooks" / "spool"
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line)["event_id"] for line in lines]


def missing(job: Job) -> dict[str, list[tuple[int, int]]]:
    """Return the intervals of each stream that were never read, in milliseconds since 1970."""
    place = Place.of(job.database)
    place.configure_dlt()
    states = Known(place).states()
    return {name: Coverage(states.get_list(name).covered).gaps(BEGINNING_MS) for name in ("messages", "chats")}


def forget_endpoints(account: Account) -> None:
    """Nobody listens there when the account is served again."""
    account.run("DELETE FROM webhooks")
    account.run("DELETE FROM deliveries")


def pack(folder: Path, archive: Path) -> None:
    """Pack what a user has, without who made it and when."""

    def without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name in FILES:
            if (folder / name).exists():
                tar.add(folder / name, name, filter=without_owner)
    print(f"{archive.name}: {archive.stat().st_size:,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
