"""Looks at everything that a run needs, and at what this API does where its pages leave it open.

Costs up to six requests.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from tempfile import TemporaryFile
from typing import Any, Literal

import msgspec

from msgbubbles.client import Client
from msgbubbles.errors import ConfigurationError, MsgBubblesError, PermanentError
from msgbubbles.models import Chat, Message, Page
from msgbubbles.transport import Transport
from msgbubbles.walk import cursor_ms, iso

from . import spark
from .destinations import destination_of
from .known import Known
from .lock import holder_of
from .place import Place, UsageError
from .transform import TransformError, compile_models

MIN_FREE_BYTES = 1_000_000_000
MAX_SKEW = timedelta(seconds=30)


@dataclass(frozen=True)
class Finding:
    """`state` is ok, info (how this API behaves), or failed, and then `fix` says what to do."""

    name: str
    state: Literal["ok", "info", "failed"]
    what: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "state": self.state, "what": self.what, "fix": self.fix}


def findings(place: Place, connect: Callable[[], Transport]) -> Iterator[Finding]:
    """All findings, one by one as they are made. `connect` raises `ConfigurationError`."""
    yield _destination(place)
    if place.destination == "filesystem":
        yield _spark()
    yield _state(place)
    yield _disk(place)
    yield _lock(place)
    yield _last_run(place)
    yield _models(place)
    try:
        transport = connect()
    except MsgBubblesError as error:
        yield Finding("configuration", "failed", str(error), "see dlt_config/config.toml and secrets.toml.example")
        return
    with Client(transport) as client:
        yield from _api(client, place)


def _destination(place: Place) -> Finding:
    try:
        destination = destination_of(place)
        if destination.exists():
            with destination.reading():
                pass
        with TemporaryFile(dir=place.folder), TemporaryFile(dir=place.file.parent):
            pass
    except UsageError as error:
        return Finding("destination", "failed", str(error), "mend that, or move a damaged file away")
    except OSError as error:
        return Finding(
            "destination", "failed", f"{error.filename or place.folder}: {error.strerror}", "make the folder writable"
        )
    return Finding("destination", "ok", f"{destination.title} can be written")


def _spark() -> Finding:
    try:
        return Finding("spark", "ok", spark.require())
    except UsageError as error:
        return Finding("spark", "info", str(error))


def _state(place: Place) -> Finding:
    try:
        Known(place).states()
    except UsageError:
        pass  # said already
    except ConfigurationError as error:
        return Finding("state", "failed", str(error), "upgrade this project")
    return Finding("state", "ok", "this version can read what the runs remember")


def _disk(place: Place) -> Finding:
    free = shutil.disk_usage(place.folder).free
    # A run needs a copy of the database to publish it, and room for what it loads.
    needed = max(2 * place.database.stat().st_size if place.database.exists() else 0, MIN_FREE_BYTES)
    what = f"{free / 1e9:.1f} GB free"
    if free < needed:
        return Finding("disk", "failed", what, f"free {needed / 1e9:.1f} GB; a run writes the database anew")
    return Finding("disk", "ok", what)


def _lock(place: Place) -> Finding:
    try:
        holder = holder_of(place.folder)
    except OSError as error:
        return Finding("lock", "failed", f"{place.folder}: {error.strerror}", "make the folder writable")
    return Finding("lock", "ok", "no job runs" if holder is None else f"a job runs: {holder}")


def _last_run(place: Place) -> Finding:
    records = _records(place)
    if not records:
        return Finding("last run", "ok", "there was none yet")
    last = records[-1]
    what = f"{last['outcome']}, status {last['exit_status']}, {str(last['started_at'])[:16]} UTC"
    if last["exit_status"] in (0, 3, 130):
        return Finding("last run", "ok", what)
    return Finding("last run", "failed", f"{what}: {last['error']}", "mend what it says and run again")


def _records(place: Place) -> list[dict[str, Any]]:
    try:
        return Known(place).records()
    except UsageError:
        return []  # said already


def _models(place: Place) -> Finding:
    try:
        compile_models(place)
    except TransformError as error:
        return Finding("transforms", "failed", str(error), "mend the model; transforms/README.md says how they are run")
    return Finding("transforms", "ok", "the dbt project compiles")


def _api(client: Client, place: Place) -> Iterator[Finding]:
    try:
        numbers = client.list_numbers()
    except MsgBubblesError as error:
        yield Finding("api", "failed", str(error), "check base_url, the network and the key in dlt_config/secrets.toml")
        return
    yield Finding("api", "ok", f"the key is good, the account is active and has {len(numbers.rows)} numbers")
    skew = numbers.server_at - numbers.read_at
    what = (
        f"this clock is {abs(skew.total_seconds()):.0f} s {'behind' if skew > timedelta(0) else 'ahead of'} the API's"
    )
    too_far = abs(skew) > MAX_SKEW
    yield Finding("clock", "failed" if too_far else "ok", what, "set the clock, by NTP for example" if too_far else "")
    try:
        yield from _behaviour(client, place)
    except MsgBubblesError as error:
        yield Finding("api behaviour", "failed", str(error), "run check again later")


def _behaviour(client: Client, place: Place) -> Iterator[Finding]:
    chats = client.list_chats()
    try:
        messages: Page[Message] | None = client.list_messages()
    except PermanentError:
        messages = None
    if messages:
        yield Finding("messages", "info", "the API answers the whole account's feed: a request for 100 messages")
    else:
        yield Finding(
            "messages", "info", "no feed of the whole account: each changed thread costs a request", "nothing to do"
        )
        if chats.rows:
            messages = client.list_messages(chats.rows[0].id)
    inbound = [message for message in messages.rows if message.direction == "inbound"] if messages else []
    yield _seen("senders", bool(inbound), any(one.sender_handle for one in inbound), "messages name their sender")
    group = next((chat for chat in chats.rows if chat.is_group), None)
    yield _seen(
        "participants", group is not None, group is not None and _shows_participants(client, group),
        "a group by id shows its participants",
    )  # fmt: skip
    yield _precision([*chats.rows, *(messages.rows if messages else ())])
    yield from _before(client, chats.rows)
    told = [one["retry_after"] for one in _records(place) if one.get("retry_after") is not None]
    yield _seen("Retry-After", bool(told), bool(told) and told[-1], "a 429 says how long to wait")


def _seen(name: str, is_known: bool, is_so: bool, what: str) -> Finding:
    said = "not seen yet" if not is_known else what if is_so else f"not so: {what}"
    return Finding(name, "info", said)


def _shows_participants(client: Client, group: Chat) -> bool:
    extra = bytes(client.get_chat(group.id).extra)
    return bool(extra) and "participants" in msgspec.json.decode(extra, type=dict[str, msgspec.Raw])


def _precision(rows: list[Any]) -> Finding:
    times = [row.cursor_at for row in rows if row.cursor_at is not None]
    if any(at.microsecond % 1000 for at in times):
        what = "microseconds"
    elif any(at.microsecond for at in times):
        what = "milliseconds"
    else:
        what = "seconds" if times else "not seen yet"
    return Finding("timestamps", "info", what)


def _before(client: Client, chats: list[Chat]) -> Iterator[Finding]:
    times = [cursor_ms(chat) for chat in chats]
    alone = [chat for chat, at in zip(chats, times, strict=True) if at is not None and times.count(at) == 1]
    if not alone:
        yield Finding("before", "info", "not seen yet")
        return
    at_ms = cursor_ms(alone[-1]) or 0
    shown = {chat.id for chat in client.list_chats(limit=5, before=iso(at_ms)).rows}
    said = "includes its own instant"
    if alone[-1].id not in shown:
        said = "excludes its own instant, or times are finer than they are shown"
    yield Finding("before", "info", said)
