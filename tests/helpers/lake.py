"""Tables that are elsewhere: how a job finds them, what happens in an account meanwhile, and what readers get."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers import s3
from helpers.context import build_destination
from helpers.job import Job
from msgbubbles_sync.dbt import spark
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.sandbox import NewMessage
from msgbubbles_sync.workspace import Workspace

try:
    spark.require()
    reason = ""
except UsageError as error:
    reason = str(error)


# The contact of two handles, and how to count its rows in a mart.
CONTACT = "canary contact"
COUNT_CONTACT = f"SELECT count(*) AS n FROM marts.contact WHERE contact = '{CONTACT}'"


def needs_spark(test: Any) -> Any:
    """Of a test that takes minutes, and is run by `make test-spark`."""
    return pytest.mark.spark(pytest.mark.skipif(bool(reason), reason=reason)(test))


def lake_at(address: str, folder: Path | str) -> dict[str, str]:
    """Return the variables with which a job finds a lake: its catalog on a server, its files in a folder."""
    section = "DESTINATION__DUCKLAKE__CREDENTIALS__"
    return {f"{section}CATALOG": address, f"{section}STORAGE__BUCKET_URL": str(folder)}


def lake_in_bucket(address: str, bucket: str, port: int) -> dict[str, str]:
    """Return the variables with which a job finds a lake whose files are in a bucket of an endpoint on this machine."""
    section = "DESTINATION__DUCKLAKE__CREDENTIALS__STORAGE__CREDENTIALS__"
    return {
        **lake_at(address, f"s3://{bucket}/lake"),
        "DESTINATION__DUCKLAKE__CREDENTIALS__DUCKLAKE_NAME": bucket.replace("-", "_"),
        f"{section}AWS_ACCESS_KEY_ID": s3.KEY,
        f"{section}AWS_SECRET_ACCESS_KEY": s3.SECRET,
        f"{section}REGION_NAME": "us-east-1",
        f"{section}ENDPOINT_URL": f"http://127.0.0.1:{port}",
        f"{section}S3_URL_STYLE": "path",
    }


def write_rows(folder: Path, first: int, rows: int) -> None:
    """Add rows to two tables of a lake, four times, as a process of its own may do."""
    with build_destination(Workspace.from_path(folder / "company.duckdb", "ducklake")).open_writer() as connection:
        for part in range(4):
            begin = first + part * rows
            for table in ("chats", "messages"):
                connection.execute(f"INSERT INTO msgbubbles.{table} FROM range({begin}, {begin + rows})")


def change(job: Job, metadata: dict[str, Any] | None = None) -> tuple[str, str]:
    """Rename a chat, write two messages to another and delete one. Returns the deleted chat and the other."""
    written = rename_and_write(job, metadata)
    return delete_chat(job), written


def rename_and_write(job: Job, metadata: dict[str, Any] | None = None) -> str:
    """Rename a chat, and write two messages to another one, now and at a time that has been read already."""
    account, now, chats = job.server.account, datetime.now(UTC), list_chats(job)
    account.rename(chats[3]["id"], "Another name", now)
    for minutes in (0, 3):
        late = now - timedelta(minutes=minutes)
        account.add_message(NewMessage(chats[9]["id"], "inbound", "hello", late, "received", metadata=metadata))
    return str(chats[9]["id"])


def delete_chat(job: Job) -> str:
    """Delete a chat to which nothing has been written for long."""
    deleted = str(list_chats(job)[5]["id"])
    job.server.account.delete_chat(deleted)
    return deleted


def list_chats(job: Job) -> list[dict[str, Any]]:
    """Return the chats, those with the oldest messages first."""
    return sorted(job.server.truth().chats, key=lambda row: row["last_message_at"] or "")


def list_contacts(job: Job) -> list[str]:
    """Let the job read a list in which two handles of the account are one contact. Returns the handles."""
    handles = sorted({row["remote_handle"] for row in job.server.truth().chats if not row["is_group"]})[:2]
    path = job.folder / "contacts.csv"
    path.write_text("\n".join(["handle,contact", *(f"{handle},{CONTACT}" for handle in handles)]))
    job.environment["TRANSFORMS__CONTACT_ALIASES"] = str(path)
    return handles


def query(workspace: Workspace, sql: str) -> list[dict[str, Any]]:
    """Select rows with a connection of its own: one to a lake takes a tenth of a second of CPU time."""
    with build_destination(workspace).open_reader() as connection:
        return select(connection, sql)


def select(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    result = connection.execute(sql)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
