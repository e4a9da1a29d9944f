"""The backup and the restore of docs/deploy.md, as printed there."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from helpers.job import Job
from helpers.warehouse_rows import differences
from msgbubbles_sync.sandbox import NewMessage

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
BASH = shutil.which("bash") or "/bin/bash"


def run_block(number: int, folder: Path) -> None:
    """Run a block of the section on backup, for this warehouse, without its last command if that is the sync."""
    section = PAGE.read_text().split("\n## Backup\n")[1].split("\n## ")[0]
    block = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)[number]
    commands = [line for line in block.splitlines() if not line.startswith(".venv/bin/python")]
    script = "\n".join(commands).replace("warehouse.duckdb", "company.duckdb").replace("/warehouse", "/company")
    subprocess.run([BASH, "-ec", script], cwd=folder, check=True)


def write_message(job: Job, text: str, at: datetime) -> None:
    row = job.server.account.all("SELECT id, remote_handle FROM chats ORDER BY id")[0]
    job.server.account.add_messages(
        [NewMessage(row["id"], "inbound", text, at, "received", sender=row["remote_handle"])]
    )


def test_restored_backup_continues_where_it_was(loaded_job: Job) -> None:
    job = loaded_job
    (job.folder / "dlt_config").mkdir()
    run_block(0, job.folder)
    assert (job.folder / "backup").stat().st_mode & 0o777 == 0o700
    write_message(job, "after the backup", datetime.now(UTC) - timedelta(minutes=1))
    job.run()
    job.database.unlink()

    run_block(1, job.folder)
    assert differences(job.database, job.server.truth())["messages"]["missing"] == 1
    restored = job.run()
    assert differences(job.database, job.server.truth()) == {}
    assert restored.requests <= 6


def test_published_file_alone_is_enough_to_continue(loaded_job: Job) -> None:
    job = loaded_job
    shutil.rmtree(job.folder / ".msgbubbles")
    write_message(job, "after the loss", datetime.now(UTC) - timedelta(minutes=1))
    assert job.run().requests <= 6
    assert differences(job.database, job.server.truth()) == {}
