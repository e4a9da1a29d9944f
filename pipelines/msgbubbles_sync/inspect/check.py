"""Looks at everything that a run needs, and at what this API does where its pages leave it open.

Costs up to seven requests.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from tempfile import TemporaryFile
from typing import Any

import msgspec

from msgbubbles.client import Client
from msgbubbles.errors import ApiError, ConfigurationError, ForbiddenError, MsgBubblesError, PermanentError
from msgbubbles.models import Chat, Message, Page
from msgbubbles.responses import Answer
from msgbubbles.source.paginate import cursor_ms
from msgbubbles.times import format_ms
from msgbubbles_sync.check_result import CheckResult
from msgbubbles_sync.context import Context
from msgbubbles_sync.dbt import spark
from msgbubbles_sync.dbt.runner import compile_models
from msgbubbles_sync.errors import TransformError, UsageError
from msgbubbles_sync.lock import read_holder
from msgbubbles_sync.run_log import describe_failed_reads
from msgbubbles_sync.workspace import Workspace

from .local_state import Known

MIN_FREE_BYTES = 1_000_000_000
MAX_SKEW = timedelta(seconds=30)


def check(context: Context, connect: Callable[[], Client]) -> Iterator[CheckResult]:
    """Run all checks, and yield each result as it is there. `connect` raises `ConfigurationError`."""
    workspace = context.workspace
    yield _destination(context)
    if workspace.destination == "filesystem":
        yield _spark()
    yield _state(context)
    yield _disk(workspace)
    yield _lock(workspace)
    yield _last_run(context)
    yield _failed_reads(context)
    yield _models(workspace)
    yield CheckResult("privacy policy", "ok", context.settings.describe_policy())
    try:
        connected = connect()
    except MsgBubblesError as error:
        yield CheckResult("configuration", "failed", str(error), "see dlt_config/config.toml and secrets.toml.example")
        return
    with connected as client:
        yield from _api(client, context)


def _destination(context: Context) -> CheckResult:
    workspace, destination = context.workspace, context.destination
    try:
        if destination.exists():
            with destination.open_reader():
                pass
        with TemporaryFile(dir=workspace.folder), TemporaryFile(dir=workspace.file.parent):
            pass
    except UsageError as error:
        return CheckResult("destination", "failed", str(error), "mend that, or move a damaged file away")
    except OSError as error:
        return CheckResult(
            "destination",
            "failed",
            f"{error.filename or workspace.folder}: {error.strerror}",
            "make the folder writable",
        )
    return CheckResult("destination", "ok", f"{destination.title} can be written")


def _spark() -> CheckResult:
    try:
        return CheckResult("spark", "ok", spark.require())
    except UsageError as error:
        return CheckResult("spark", "info", str(error))


def _state(context: Context) -> CheckResult:
    try:
        Known(context).states()
    except UsageError:
        pass  # said already
    except ConfigurationError as error:
        return CheckResult("state", "failed", str(error), "upgrade this project")
    return CheckResult("state", "ok", "this version can read what the runs remember")


def _disk(workspace: Workspace) -> CheckResult:
    free = shutil.disk_usage(workspace.folder).free
    # A run needs a copy of the database to publish it, and room for what it loads.
    needed = max(2 * workspace.database.stat().st_size if workspace.database.exists() else 0, MIN_FREE_BYTES)
    what = f"{free / 1e9:.1f} GB free"
    if free < needed:
        return CheckResult("disk", "failed", what, f"free {needed / 1e9:.1f} GB; a run writes the database anew")
    return CheckResult("disk", "ok", what)


def _lock(workspace: Workspace) -> CheckResult:
    try:
        holder = read_holder(workspace.folder)
    except OSError as error:
        return CheckResult("lock", "failed", f"{workspace.folder}: {error.strerror}", "make the folder writable")
    if holder is not None and holder.is_stalled:
        return CheckResult("lock", "failed", f"a job is stuck: {holder}", "end that process")
    return CheckResult("lock", "ok", "no job runs" if holder is None else f"a job runs: {holder}")


def _last_run(context: Context) -> CheckResult:
    records = _records(context)
    if not records:
        return CheckResult("last run", "ok", "there was none yet")
    last = records[-1]
    what = f"{last['outcome']}, status {last['exit_status']}, {str(last['started_at'])[:16]} UTC"
    if last["exit_status"] in (0, 3, 130):
        return CheckResult("last run", "ok", what)
    return CheckResult("last run", "failed", f"{what}: {last['error']}", "mend what it says and run again")


def _failed_reads(context: Context) -> CheckResult:
    try:
        failed = describe_failed_reads(Known(context).states().failed_reads)
    except (UsageError, ConfigurationError):
        failed = []  # reported already
    if failed:
        return CheckResult(
            "failed reads", "failed", "; ".join(failed), "ask MsgBubbles about these, if they keep failing"
        )
    return CheckResult("failed reads", "ok", "everything that was asked for could be read")


def _records(context: Context) -> list[dict[str, Any]]:
    try:
        return Known(context).records()
    except UsageError:
        return []  # said already


def _models(workspace: Workspace) -> CheckResult:
    try:
        compile_models(workspace)
    except TransformError as error:
        return CheckResult(
            "transforms", "failed", str(error), "mend the model; transforms/README.md says how they are run"
        )
    return CheckResult("transforms", "ok", "the dbt project compiles")


def _api(client: Client, context: Context) -> Iterator[CheckResult]:
    try:
        chats = client.list_chats()
    except MsgBubblesError as error:
        yield CheckResult(
            "api", "failed", str(error), "check base_url, the network and the key in dlt_config/secrets.toml"
        )
        return
    what = "the key is good, the account is active"
    try:
        yield CheckResult("api", "ok", f"{what} and has {len(client.list_numbers().rows)} numbers")
    except ApiError as error:
        yield CheckResult("api", "ok", what)
        yield CheckResult(
            "numbers", "failed", str(error), "ask MsgBubbles about it; everything else is read without them"
        )
    yield _clock(client.transport.last_answer)
    try:
        yield from _behaviour(client, context, chats)
    except MsgBubblesError as error:
        yield CheckResult("api behaviour", "failed", str(error), "run check again later")


def _clock(answer: Answer | None) -> CheckResult:
    if answer is None or answer.date is None:
        return CheckResult(
            "clock", "info", "the API's answers have no readable Date, so this clock is taken for its own"
        )
    skew = answer.date - answer.fetched_at
    what = (
        f"this clock is {abs(skew.total_seconds()):.0f} s {'behind' if skew > timedelta(0) else 'ahead of'} the API's"
    )
    too_far = abs(skew) > MAX_SKEW
    return CheckResult(
        "clock", "failed" if too_far else "ok", what, "set the clock, by NTP for example" if too_far else ""
    )


def _behaviour(client: Client, context: Context, chats: Page[Chat]) -> Iterator[CheckResult]:
    try:
        messages: Page[Message] | None = client.list_messages()
    except (PermanentError, ForbiddenError):
        messages = None
    if messages:
        yield CheckResult("messages", "info", "the API answers the whole account's feed: a request for 100 messages")
    else:
        yield CheckResult(
            "messages", "info", "no feed of the whole account: each changed thread costs a request", "nothing to do"
        )
        if chats.rows:
            messages = client.list_messages(chats.rows[0].id)
    group = next((chat for chat in chats.rows if chat.is_group), None)
    yield _senders(client, chats.rows, messages.rows if messages else [])
    yield _seen(
        "participants", group is not None, group is not None and _shows_participants(client, group),
        "a group by id shows its participants",
    )  # fmt: skip
    yield _precision([*chats.rows, *(messages.rows if messages else ())])
    yield from _before(client, chats.rows)
    told = [one["retry_after"] for one in _records(context) if one.get("retry_after") is not None]
    yield _seen("Retry-After", bool(told), bool(told) and told[-1], "a 429 says how long to wait")


def _senders(client: Client, chats: list[Chat], messages: list[Message]) -> CheckResult:
    """Which field names the senders in groups: of other chats, it is known who writes there."""
    groups = [chat.id for chat in chats if chat.is_group]
    in_groups = [one for one in messages if one.direction == "inbound" and one.conversation_id in groups]
    if groups and not in_groups:
        in_groups = [one for one in client.list_messages(groups[0]).rows if one.direction == "inbound"]
    named = [one for one in in_groups or messages if one.direction == "inbound" and one.sender_handle]
    if named:
        fields = " and ".join(sorted({f'"{one.sender_field or "sender"}"' for one in named}))
        return CheckResult("senders", "info", f"messages name their sender in the field {fields}")
    if not in_groups:
        return CheckResult("senders", "info", "not seen yet")
    what = "not so: no message in a group names its sender; if a field does, set sender_field of [sources.msgbubbles]"
    return CheckResult("senders", "info", what)


def _seen(name: str, is_known: bool, is_so: bool, what: str) -> CheckResult:
    said = "not seen yet" if not is_known else what if is_so else f"not so: {what}"
    return CheckResult(name, "info", said)


def _shows_participants(client: Client, group: Chat) -> bool:
    extra = bytes(client.get_chat(group.id).extra)
    return bool(extra) and "participants" in msgspec.json.decode(extra, type=dict[str, msgspec.Raw])


def _precision(rows: list[Any]) -> CheckResult:
    times = [row.cursor_at for row in rows if row.cursor_at is not None]
    if any(at.microsecond % 1000 for at in times):
        what = "microseconds"
    elif any(at.microsecond for at in times):
        what = "milliseconds"
    else:
        what = "seconds" if times else "not seen yet"
    return CheckResult("timestamps", "info", what)


def _before(client: Client, chats: list[Chat]) -> Iterator[CheckResult]:
    times = [cursor_ms(chat) for chat in chats]
    alone = [chat for chat, at in zip(chats, times, strict=True) if at is not None and times.count(at) == 1]
    if not alone:
        yield CheckResult("before", "info", "not seen yet")
        return
    at_ms = cursor_ms(alone[-1]) or 0
    shown = {chat.id for chat in client.list_chats(limit=5, before=format_ms(at_ms)).rows}
    said = "includes its own instant"
    if alone[-1].id not in shown:
        said = "excludes its own instant, or times are finer than they are shown"
    yield CheckResult("before", "info", said)
