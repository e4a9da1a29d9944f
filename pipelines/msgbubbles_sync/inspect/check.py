"""Check everything that a run needs, and show how this API behaves where its documentation leaves that open.

Makes up to seven requests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from tempfile import TemporaryFile
from typing import Any

import duckdb

from msgbubbles.client import Client
from msgbubbles.decode import read_participants
from msgbubbles.errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ForbiddenError,
    PermanentError,
    UnreachableError,
)
from msgbubbles.models import Chat, Message, Page
from msgbubbles.responses import Answer
from msgbubbles.source.paginate import cursor_ms
from msgbubbles.times import format_ms
from msgbubbles_sync.check_result import Check, CheckResult
from msgbubbles_sync.context import Context
from msgbubbles_sync.dbt import spark
from msgbubbles_sync.dbt.runner import compile_models
from msgbubbles_sync.destinations.claims import explain_other_job, explain_same_numbers, explain_shared_key
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.errors import TransformError, UsageError
from msgbubbles_sync.lock import read_holder
from msgbubbles_sync.run_log import describe_failed_parts, describe_failed_reads, format_start
from msgbubbles_sync.run_record import RunRecord
from msgbubbles_sync.text import format_count
from msgbubbles_sync.workspace import PRIVACY_WORK, USABLE, Workspace

from .local_state import LocalState

MIN_FREE_BYTES = 1_000_000_000
MAX_SKEW = timedelta(seconds=30)


def list_checks(context: Context, connect: Callable[[], Client]) -> list[Check]:
    """List all checks, the slowest last. `connect` raises `ConfigurationError`."""
    workspace, local = context.workspace, LocalState(context)
    return [
        ("configuration", lambda: _check_api(connect, local)),
        ("version", lambda: check_version(context.destination)),
        ("destination", lambda: check_destination(context)),
        ("spark", lambda: _check_spark() if workspace.destination == "filesystem" else None),
        ("state", lambda: _check_state(local)),
        ("disk", lambda: _check_disk(workspace)),
        ("lock", lambda: check_lock(workspace)),
        ("last run", lambda: _check_last_run(local)),
        ("failed reads", lambda: _check_failed_reads(local)),
        ("accounts", lambda: _check_accounts(context)),
        ("privacy policy", lambda: _check_policy(context)),
        ("transforms", lambda: _check_models(context)),
    ]


def _check_accounts(context: Context) -> CheckResult | None:
    if shared := explain_same_numbers(context.destination):
        return CheckResult("accounts", "failed", shared, "start the wrong account again, with another --database")
    if other_job := explain_other_job(context.destination):
        fix = "run one job on one machine, or give the other one schemas of its own ([sync] raw_schema and so on)"
        return CheckResult("accounts", "failed", other_job, fix)
    same_key = explain_shared_key(context.workspace, context.settings)
    return CheckResult("accounts", "info", same_key) if same_key else None


def _check_policy(context: Context) -> CheckResult:
    context.check_policy()
    if context.workspace.has_privacy_work:
        what = f"{PRIVACY_WORK}: nothing is published until it is finished"
        return CheckResult("privacy policy", "failed", what, "run chats.py, which finishes it")
    return CheckResult("privacy policy", "ok", context.settings.describe_policy())


def check_destination(context: Context) -> CheckResult:
    workspace, destination = context.workspace, context.destination
    try:
        workspace.make_folders()
        destination.probe()
        with TemporaryFile(dir=workspace.folder), TemporaryFile(dir=workspace.file.parent):
            pass
    except UsageError as error:
        return CheckResult("destination", "failed", str(error), "fix that, or move the damaged file away")
    except OSError as error:
        what = f"{error.filename or workspace.folder}: {error.strerror}"
        return CheckResult("destination", "failed", what, "make the folder writable")
    replaced: list[str] = []
    with suppress(UsageError, duckdb.Error):
        if destination.has_tables():
            with destination.open_job_tables() as connection:
                replaced = destination.list_replaced(connection)
    rest = f"; {', '.join(replaced)} has the rows of before somebody changed the table: drop it" if replaced else ""
    return CheckResult("destination", "ok", f"{destination.title} can be written{rest}")


def _check_spark() -> CheckResult:
    try:
        return CheckResult("spark", "ok", spark.require())
    except UsageError as error:
        return CheckResult("spark", "info", str(error))


def _check_state(local: LocalState) -> CheckResult:
    try:
        with suppress(UsageError):  # the check of the destination reports it
            _ = local.states
    except ConfigurationError as error:
        return CheckResult("state", "failed", str(error), "upgrade this project")
    return CheckResult("state", "ok", "this release can read the state of the streams")


def _check_disk(workspace: Workspace) -> CheckResult:
    free = shutil.disk_usage(workspace.folder if workspace.folder.exists() else workspace.file.parent).free
    # A run needs a copy of the database to publish it, and room for the rows that it loads.
    needed = max(2 * workspace.database.stat().st_size if workspace.database.exists() else 0, MIN_FREE_BYTES)
    what = f"{free / 1e9:.1f} GB free"
    if free < needed:
        return CheckResult("disk", "failed", what, f"free {needed / 1e9:.1f} GB: a run copies the whole database")
    return CheckResult("disk", "ok", what)


def check_lock(workspace: Workspace) -> CheckResult:
    """Check that the active job, if there is one, makes progress."""
    try:
        holder = read_holder(workspace.folder)
    except OSError as error:
        return CheckResult("lock", "failed", f"{workspace.folder}: {error.strerror}", "make the folder writable")
    if holder is not None and holder.is_stalled:
        return CheckResult("lock", "failed", f"a job is stuck: {holder}", "end that process")
    return CheckResult("lock", "ok", "no job is active" if holder is None else f"a job is active: {holder}")


def _check_last_run(local: LocalState) -> CheckResult:
    records = _load_records(local)
    if not records:
        return CheckResult("last run", "ok", "no run yet")
    last = records[-1]
    what = f"{last['outcome']} (exit status {last['exit_status']}), {format_start(last)} UTC"
    if parts := describe_failed_parts(last):
        return CheckResult("last run", "failed", f"{what}: {'; '.join(parts)}", "fix that and run again")
    if last["exit_status"] in (0, 3, 130):
        return CheckResult("last run", "ok", what)
    return CheckResult("last run", "failed", f"{what}: {last['error']}", "fix the error and run again")


def _check_failed_reads(local: LocalState) -> CheckResult:
    with suppress(ConfigurationError):  # other checks report it
        if failed := describe_failed_reads(local.states.failed_reads):
            fix = "ask MsgBubbles about these if they keep failing"
            return CheckResult("failed reads", "failed", "; ".join(failed), fix)
    return CheckResult("failed reads", "ok", "every request for data was answered")


def _load_records(local: LocalState) -> list[RunRecord]:
    with suppress(UsageError):  # the check of the destination reports it
        return local.records
    return []


def _check_models(context: Context) -> CheckResult | None:
    if not os.access(context.workspace.dbt_folder, USABLE):  # the check of the destination reports it
        return None
    try:
        compile_models(context.destination, context.settings)
    except TransformError as error:
        fix = "fix the model; transforms/README.md shows how to run it"
        return CheckResult("transforms", "failed", str(error), fix)
    return CheckResult("transforms", "ok", "the dbt project compiles")


def _check_api(connect: Callable[[], Client], local: LocalState) -> Iterator[CheckResult]:
    with connect() as client:
        chats: Page[Chat] | None = None
        failed: dict[str, ApiError] = {}
        what = "the API key is valid, the account is active"
        try:
            chats = client.list_chats()
        except ApiError as error:
            failed["chats"] = error
        try:
            if not isinstance(failed.get("chats"), UnreachableError):
                what += f" and has {format_count(len(client.list_numbers().rows), 'number')}"
        except ApiError as error:
            failed["numbers"] = error
        if client.transport.last_answer is None:
            fix = "check base_url, the network, and the key in dlt_config/secrets.toml"
            if isinstance(failed["chats"], AuthenticationError):
                fix = "correct api_key in dlt_config/secrets.toml, or the variable that sets it"
            elif isinstance(failed["chats"], UnreachableError):
                fix = "check base_url and the network"
            yield CheckResult("api", "failed", str(failed["chats"]), fix)
            return
        yield CheckResult("api", "ok", what)
        fix = "ask MsgBubbles about it; all other data is read without it"
        yield from (CheckResult(name, "failed", str(why), fix) for name, why in failed.items())
        yield _check_clock(client.transport.last_answer)
        yield from _observe_api(client, local, chats.rows if chats else [])


def _check_clock(answer: Answer | None) -> CheckResult:
    if answer is None or answer.date is None:
        return CheckResult("clock", "info", "the API's responses have no readable Date, so this machine's clock counts")
    skew = answer.date - answer.fetched_at
    side = "behind" if skew > timedelta(0) else "ahead of"
    what = f"this machine's clock is {abs(skew.total_seconds()):.0f} s {side} the API's"
    if abs(skew) > MAX_SKEW:
        return CheckResult("clock", "failed", what, "set the clock, for example by NTP")
    return CheckResult("clock", "ok", what)


def _observe_api(client: Client, local: LocalState, chats: list[Chat]) -> Iterator[CheckResult]:
    messages: list[Message] = []

    def observe_feed() -> CheckResult:
        try:
            messages.extend(client.list_messages().rows)
        except (PermanentError, ForbiddenError):
            messages.extend(client.list_messages(chats[0].id).rows if chats else ())
            return CheckResult("messages", "info", "no list of all messages: each changed chat costs a request")
        return CheckResult("messages", "info", "the API lists all messages of the account, 100 a request")

    def observe_participants() -> CheckResult:
        group = next((chat for chat in chats if chat.is_group), None)
        holds = None if group is None else read_participants(client.get_chat(group.id)) is not None
        return _observe("participants", holds,
                        "a group read by id shows its participants",
                        "a group read by id does not show its participants")  # fmt: skip

    observations: dict[str, Callable[[], CheckResult]] = {
        "messages": observe_feed,
        "senders": lambda: _observe_senders(client, chats, messages),
        "participants": observe_participants,
        "timestamps": lambda: _observe_precision([*chats, *messages]),
        "before": lambda: _observe_before(client, chats),
    }
    for name, observe in observations.items():
        try:
            yield observe()
        except ApiError as error:
            yield CheckResult(name, "failed", str(error), "run check again later")
    headers = [value for record in _load_records(local) if (value := record.get("retry_after")) is not None]
    yield _observe("Retry-After", headers[-1] if headers else None, "a 429 says how long to wait",
                   "a 429 does not say how long to wait")  # fmt: skip


def _observe(name: str, holds: bool | None, if_so: str, if_not: str) -> CheckResult:
    """Build the result of an observation; `holds` is null if there was nothing to observe."""
    return CheckResult(name, "info", "not seen yet" if holds is None else if_so if holds else if_not)


def _observe_senders(client: Client, chats: list[Chat], messages: list[Message]) -> CheckResult:
    """Find the field that names the senders in groups; in other chats the sender is known anyway."""
    groups = [chat.id for chat in chats if chat.is_group]
    in_groups = [row for row in messages if row.direction == "inbound" and row.conversation_id in groups]
    if groups and not in_groups:
        in_groups = [row for row in client.list_messages(groups[0]).rows if row.direction == "inbound"]
    with_sender = [row for row in in_groups or messages if row.direction == "inbound" and row.sender_handle]
    if with_sender:
        fields = " and ".join(sorted({f'"{row.sender_field or "sender"}"' for row in with_sender}))
        return CheckResult("senders", "info", f"messages name their sender in the field {fields}")
    if not in_groups:
        return CheckResult("senders", "info", "not seen yet")
    what = "no message in a group names its sender; if a field does, set sender_field of [sources.msgbubbles]"
    return CheckResult("senders", "info", what)


def _observe_precision(rows: list[Any]) -> CheckResult:
    times = [row.cursor_at for row in rows if row.cursor_at is not None]
    if any(at.microsecond % 1000 for at in times):
        what = "precise to microseconds"
    elif any(at.microsecond for at in times):
        what = "precise to milliseconds"
    else:
        what = "precise to seconds" if times else "not seen yet"
    return CheckResult("timestamps", "info", what)


def _observe_before(client: Client, chats: list[Chat]) -> CheckResult:
    times = [cursor_ms(chat) for chat in chats]
    unique = [chat for chat, at in zip(chats, times, strict=True) if at is not None and times.count(at) == 1]
    if not unique:
        return CheckResult("before", "info", "not seen yet")
    at_ms = cursor_ms(unique[-1]) or 0
    if unique[-1].id in {chat.id for chat in client.list_chats(limit=5, before=format_ms(at_ms)).rows}:
        return CheckResult("before", "info", "a list includes rows of that timestamp")
    what = "a list leaves out rows of that timestamp, or timestamps are more precise than they are shown"
    return CheckResult("before", "info", what)
