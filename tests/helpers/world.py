"""Simulate an account, its API, the source and a warehouse in one process, with a clock of their own.

Everything between the account and the rows is real (the sandbox's handlers, the client, the readers, Arrow), except the
socket and dlt's load: a run takes milliseconds, and can be killed at any request. The warehouse commits rows and state
together, as a load does.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import httpx
import msgspec
import pyarrow as pa

from helpers.warehouse_rows import differences_of
from msgbubbles.api_time import Clock
from msgbubbles.client import Client
from msgbubbles.models import Attachment, Chat
from msgbubbles.private_client import build_client
from msgbubbles.redact import Redactor
from msgbubbles.settings import DEFAULTS, RefreshRule, SourceSettings
from msgbubbles.source import reconcile
from msgbubbles.source.buffer import RowBuffer
from msgbubbles.source.chats import read_chats
from msgbubbles.source.fetch import InFlight
from msgbubbles.source.messages import read_messages
from msgbubbles.source.readers import read_numbers
from msgbubbles.source.run import Run
from msgbubbles.source.state import States
from msgbubbles.source.streams import read_stream
from msgbubbles.tables import ATTACHMENTS, CHATS, TABLES
from msgbubbles.times import to_epoch_ms
from msgbubbles.transport import Transport
from msgbubbles_sync.sandbox import Account, Knobs, NewMessage
from msgbubbles_sync.sandbox.app import Api
from msgbubbles_sync.sandbox.knobs import KEY
from msgbubbles_sync.sandbox.listing import truth

OURS = "+14155550100"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def build_settings(
    lookback_ms: int = 300_000, chats: Sequence[RefreshRule] = (), messages: Sequence[RefreshRule] = (), **others: Any
) -> SourceSettings:
    """Build settings without a rate limit, and by default without a refresh."""
    return SourceSettings(
        lookback_seconds=lookback_ms / 1000,
        refresh_chats=tuple(chats),
        refresh_messages=tuple(messages),
        requests_per_minute=0,
        **others,
    )


# From 1970 on, with the default refresh.
SINCE_1970 = SourceSettings(start_date="1970-01-01", requests_per_minute=0)


class Killed(BaseException):
    """The process was killed; rows that were not loaded are lost."""


class InProcess(httpx.BaseTransport):
    """Answer requests by calling the sandbox's application in this thread. `date` returns the API's time."""

    def __init__(self, api: Api, date: Callable[[], datetime], on_request: Callable[[], None]) -> None:
        self._app = api.app()
        self._date = date
        self._on_request = on_request

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._on_request()
        scope = {
            "type": "http", "http_version": "1.1", "method": request.method, "path": request.url.path, "root_path": "",
            "scheme": "http", "query_string": request.url.query, "raw_path": request.url.raw_path, "server": ("x", 80),
            "headers": [(name.lower(), value) for name, value in request.headers.raw], "client": ("x", 1),
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        body = request.read()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        running = self._app(scope, receive, send)  # type: ignore[arg-type]
        try:
            running.send(None)
        except StopIteration:
            pass
        except ConnectionAbortedError:
            raise httpx.RemoteProtocolError("cut off") from None
        headers = [*sent[0]["headers"], (b"date", format_datetime(self._date(), usegmt=True).encode())]
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return httpx.Response(sent[0]["status"], headers=headers, content=content)


class InAnyOrder(InFlight[Any]):
    """Run queued calls one by one in random but reproducible order, as threads might."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def answer(self) -> tuple[Any, Callable[[], Any]]:
        return self._asked.pop(self._chance.randrange(len(self._asked)))

    def close(self) -> None:
        while self._asked:
            self._asked.pop()[1]()


class Store:
    """An in-memory warehouse with the answers that the real one gets by SQL."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Any, dict[str, Any]]] = {table: {} for table in TABLES}
        self.states: dict[str, Any] = {}

    def load(self, items: Iterable[Any]) -> None:
        """Store rows: within a load the most recently read version of a row wins, across loads the later load."""
        loaded: dict[str, dict[Any, dict[str, Any]]] = {}
        for item in items:
            table = item.meta.hints["table_name"]
            for row in item.data.to_pylist():
                key = tuple(row[name] for name in TABLES[table].key)
                before = loaded.setdefault(table, {}).get(key)
                if before is None or before["_fetched_at"] <= row["_fetched_at"]:
                    loaded[table][key] = row
        for table, rows in loaded.items():
            self.tables[table] |= rows

    def rows(self, table: str, incoming: pa.Table) -> pa.Table | None:
        keys = set(incoming.column(TABLES[table].key[0]).to_pylist())
        found = [row for key, row in self.tables[table].items() if key[0] in keys]
        found = [row for row in found if table != "chats" or row["from_event_at"] is None]
        return pa.Table.from_pylist(found, schema=incoming.schema) if found else None

    def message_locations(self, ids: Sequence[str]) -> dict[str, tuple[str | None, datetime | None]]:
        return {
            row["id"]: (row["conversation_id"], row["cursor_at"]) for row in self._read_messages() if row["id"] in ids
        }

    def attachments(self, message_ids: Sequence[str]) -> list[Attachment]:
        names = [name for name in ATTACHMENTS.column_names if name != "_fetched_at"]
        return [
            Attachment(**{name: row[name] for name in names} | {"extra": msgspec.Raw((row["extra"] or "").encode())})
            for row in self.tables["attachments"].values()
            if row["message_id"] in message_ids and row["removed_at"] is None
        ]

    def chats(self, ids: Sequence[str]) -> list[Chat]:
        rows = [self.tables["chats"][(key,)] for key in ids if (key,) in self.tables["chats"]]
        names = [name for name in CHATS.column_names if name not in ("from_event_at", "_fetched_at")]
        return [
            Chat(**{name: row[name] for name in names} | {"extra": msgspec.Raw((row["extra"] or "").encode())})
            for row in rows
        ]

    def read_chats(self, ids: Sequence[str]) -> list[str]:
        return [row["id"] for row in self._read_chats() if row["id"] in ids]

    def chats_between(self, lo_ms: int, hi_ms: int) -> set[str]:
        return {row["id"] for row in self._alive() if row["at"] is not None and lo_ms <= row["at"] < hi_ms}

    def chats_without_time(self, limit: int) -> list[str]:
        return [row["id"] for row in self._alive() if row["at"] is None][:limit]

    def chats_alive_at(self, from_ms: int, to_ms: int, after_id: str, limit: int) -> list[str]:
        found = [
            row["id"]
            for row in self._alive()
            if (row["created_at"] is None or to_epoch_ms(row["created_at"]) <= to_ms)
            and (row["at"] is None or row["at"] >= from_ms)
            and row["id"] > after_id
        ]
        return sorted(found)[:limit]

    def has_chat_without_messages(self, since_ms: int) -> bool:
        named = {row["conversation_id"] for row in self._read_messages()}
        return any(row["at"] is not None and row["at"] >= since_ms and row["id"] not in named for row in self._alive())

    def orphans(self, limit: int) -> list[str]:
        named = {row["conversation_id"] for row in self.tables["messages"].values()} - {None}
        return sorted(named - {row["id"] for row in self._read_chats()})[:limit]

    def groups_to_ask(self, before_ms: int, limit: int) -> dict[str, list[str] | None]:
        due: dict[str, list[str] | None] = {}
        for row in self._alive():
            known = self.tables["participant_reads"].get((row["id"],))
            if not row["is_group"]:
                continue
            if known is None:
                due[row["id"]] = None
            elif known["asked_at"] < row["updated_at"] and to_epoch_ms(known["asked_at"]) < before_ms:
                due[row["id"]] = msgspec.json.decode(known["handles"])
        return dict(list(due.items())[:limit])

    def missing_from_events(self, _since_ms: int, _limit: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
        return [], {}

    def lagging(self, lo_ms: int, hi_ms: int, limit: int) -> dict[str, int]:
        newest: dict[str, int] = {}
        for row in self._read_messages():
            if row["cursor_at"] is None:
                continue
            newest[row["conversation_id"]] = max(newest.get(row["conversation_id"], 0), to_epoch_ms(row["cursor_at"]))
        found = [
            (row["id"], row["at"])
            for row in self._alive()
            if row["at"] is not None and lo_ms <= row["at"] < hi_ms and newest.get(row["id"], -1) < row["at"]
        ]
        return dict(sorted(found, key=lambda item: -item[1])[:limit])

    def _read_messages(self) -> list[dict[str, Any]]:
        return [row for row in self.tables["messages"].values() if row["from_event_at"] is None]

    def _read_chats(self) -> list[dict[str, Any]]:
        return [row for row in self.tables["chats"].values() if row["from_event_at"] is None]

    def _alive(self) -> list[dict[str, Any]]:
        rows = [row for row in self._read_chats() if row["deleted_at"] is None]
        return [row | {"at": row["last_message_at"] and to_epoch_ms(row["last_message_at"])} for row in rows]


class World:
    """An account, its API, a job and a warehouse.

    Times are milliseconds of the API's clock; the job's clock is `client_ahead_ms` ahead of it.
    """

    def __init__(self, knobs: Knobs, settings: SourceSettings, *, page_size: int = 5, seed: int = 0) -> None:
        self.now_ms = to_epoch_ms(datetime(2026, 3, 2, 9, tzinfo=UTC))
        self.client_ahead_ms = 0
        self.knobs = knobs
        self.settings = settings
        self.page_size = page_size
        self.random = random.Random(seed)
        self.account = Account()
        self.account.add_number(OURS, "Support")
        self.store = Store()
        self.redactor = Redactor()
        self.hidden: list[tuple[int, NewMessage]] = []
        self.requests = 0
        self.killed_at: int | None = None
        self._http = InProcess(Api(self.account, knobs), lambda: self.at(), self._count)

    def close(self) -> None:
        self.account.close()

    def at(self, ms: int | None = None) -> datetime:
        return EPOCH + timedelta(milliseconds=self.now_ms if ms is None else ms)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        for due_ms, message in list(self.hidden):
            if due_ms <= self.now_ms:
                self.account.add_messages([message])
                self.hidden.remove((due_ms, message))

    def _count(self) -> None:
        self.requests += 1
        self.pass_time(self.random.randint(1, 40))
        if self.killed_at is not None and self.requests >= self.killed_at:
            raise Killed

    def sync(self, run: Run | None = None, *, killed_after: int | None = None, accept_failure: bool = False) -> Run:
        """Run the job: batches, then missing rows. Each is loaded completely or not at all."""
        run = run or Run()
        run.keep_on_error = True
        run.clock = Clock(lambda: self.at(self.now_ms + self.client_ahead_ms))
        run.warehouse, run.settings = self.store, self.settings  # type: ignore[assignment]
        run.in_flight = lambda: InAnyOrder(self.random)
        if self.settings.parallel_requests != DEFAULTS.parallel_requests:
            run.traffic.latency_seconds = 1e30  # which calls for all workers that a run may have
        self.killed_at = None if killed_after is None else self.requests + killed_after
        try:
            for _ in range(1000):
                self._read_batch(run)
                if not run.is_unfinished:
                    break
            else:
                raise AssertionError("the batches of a run do not end")
            if run.error is None and run.halt is None:
                states = States.from_resources(self.store.states)
                run.missing = reconcile.find_missing(self.store, states, self.settings)  # type: ignore[arg-type]
                if run.missing:
                    self._read_batch(run)
        except Killed:
            pass
        finally:
            self.killed_at = None
        assert accept_failure or run.error is None, run.error
        return run

    def _read_batch(self, run: Run) -> None:
        states = copy.deepcopy(self.store.states)
        items: list[Any] = []
        for name, read, tables in (
            ("numbers", read_numbers, ("numbers",)),
            ("messages", read_messages, ("messages", "attachments")),
            ("chats", read_chats, ("chats", "messages", "attachments", "participant_reads", "participant_lists")),
        ):
            if run.missing is not None and name == "numbers":
                continue
            with self._client(run) as client:
                buffer = RowBuffer(tables, run.warehouse, run.changes)
                items += read_stream(read, client, buffer, states.setdefault(name, {}), run)
        # Only state that can be serialized survives.
        self.store.load(items)
        self.store.states = msgspec.json.decode(msgspec.json.encode(states))

    def _client(self, run: Run) -> Client:
        transport = Transport(
            "http://127.0.0.1/v1", KEY, None, max_backoff_seconds=0, traffic=run.traffic, clock=run.clock,
            max_requests=run.max_requests, max_attempts=30, stop=run.stop,
        )  # fmt: skip
        transport._http._transport = self._http
        client = build_client(transport, self.redactor, self.store.read_chats)
        client.list_chats = partial(client.list_chats, self.page_size)  # type: ignore[method-assign]
        listed = client.list_messages

        def list_messages(conversation_id: str | None = None, before: str | None = None) -> Any:
            return listed(conversation_id, self.page_size, before)

        client.list_messages = list_messages  # type: ignore[method-assign, assignment]
        return client

    def differences(self) -> dict[str, dict[str, int]]:
        have = {
            table: {
                key[0]: {n: v for n, v in row.items() if n not in ("_fetched_at", "extra")} for key, row in rows.items()
            }
            for table, rows in self.store.tables.items()
        }
        for row in [*have["messages"].values(), *have["numbers"].values()]:
            for name in ("error", "metadata", "channels"):
                if isinstance(row.get(name), str):
                    row[name] = msgspec.json.decode(row[name])
        return differences_of(have, truth(self.account, self.knobs))
