"""The record of a run: a line of the run log, and a row of `msgbubbles.sync_runs`."""

from __future__ import annotations

from typing import Annotated, NotRequired, Required, TypedDict


class RowCounts(TypedDict):
    """The outcome for the rows of a table. `replaced` counts those with a value that cannot be stored."""

    new: int
    changed: int
    unchanged: int
    replaced: NotRequired[int]


class StreamRecord(TypedDict):
    """How a run read a stream. Timestamps are ISO 8601, here and in `CoveredRecord`."""

    pages: int
    refresh_pages: int
    rows: int
    landed: int  # codespell:ignore landed
    rejected: int
    odd: int
    new_fields: list[str]
    order_contradictions: int
    tie_overflows: list[list[str | None]]
    reached_back_to: str | None
    covered_before: CoveredRecord | None
    covered: CoveredRecord | None


# The interval in which rows have been read, and how many gaps it has.
CoveredRecord = TypedDict("CoveredRecord", {"from": str | None, "to": str | None, "gaps": int})


class RunRecord(TypedDict, total=False):
    """A run, as log collectors get it: timestamps are ISO 8601, durations seconds.

    A field with a description is a column of `tables.SYNC_RUNS`, whose type stands before it if the field's is another.
    A record of another release may lack some, and have others.
    """

    run_id: Required[Annotated[str, "The run."]]
    started_at: Required[Annotated[str, "timestamp", "When the run started."]]
    ended_at: Annotated[str, "timestamp", "When the run ended."]
    outcome: Required[
        Annotated[
            str,
            "complete, partial (not ended yet, a repair, or --max-requests reached), stopped (by a signal) or failed.",
        ]
    ]
    exit_status: Required[Annotated[int, "integer", "The exit status of the command."]]
    error: Annotated[str | None, "The error. Null without one."]
    requests_total: Annotated[int, "Number of requests."]
    requests: Annotated[dict[str, int], "Number of requests by kind, as a JSON object."]
    rate_limited: Annotated[int, "Number of answers with status 429."]
    retry_after: Annotated[bool | None, "Whether a 429 named a time to wait. Null without a 429."]
    retries: Annotated[int, "Number of requests that were repeated after an error."]
    received_bytes: Annotated[int, "Size of the answers in bytes."]
    paced_seconds: Annotated[float, "Seconds spent waiting for the rate limiter."]
    batches: Annotated[int, "Number of loads."]
    seconds: Annotated[dict[str, float], "Seconds by phase, as a JSON object."]
    tables: Annotated[dict[str, RowCounts], "Number of new, changed and unchanged rows by table, as a JSON object."]
    streams: Annotated[dict[str, StreamRecord], "Pages, rows, rejected rows and coverage by stream, as a JSON object."]
    repaired: Annotated[dict[str, int], "Number of missing things that were read again, by kind, as a JSON object."]
    expired: Annotated[
        dict[str, int], "Number of texts, threads and messages that the privacy policy expired, as a JSON object."
    ]
    feed: Annotated[bool | None, "Whether the API has a feed of all messages. Null if it was not requested."]
    versions: Annotated[dict[str, str], "Versions of the software, as a JSON object."]
    failed_parts: Annotated[dict[str, str], "Parts of the run that failed alone, and why, as a JSON object."]
    failed_tests: Annotated[list[str], "Data tests that failed, as a JSON list."]
    held_marts: Annotated[list[str], "Marts that were not published because they failed, as a JSON list."]
    failed_reads: Annotated[dict[str, int], "Number of failed reads that are tried again, by kind, as a JSON object."]
    account: str | None
    database: str
    published: bool
    budget_used: int | None
    budget_per_minute: int | None
