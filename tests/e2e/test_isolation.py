"""What fails alone costs nothing else: it is recorded, retried, and gone from the record when it succeeds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import duckdb

from job import Job

NewJob = Callable[..., Job]
Refusal = Callable[[str, str], tuple[int, str] | None]


def failed_reads(job: Job) -> list[tuple[Any, ...]]:
    with closing(duckdb.connect(str(job.database), read_only=True)) as database:
        query = "SELECT kind, id, tries, http_status, error_code FROM msgbubbles.failed_reads ORDER BY kind, id"
        return database.execute(query).fetchall()


def refuse(status: int, code: str, part: str) -> Refusal:
    return lambda _method, path: (status, code) if part in path else None
