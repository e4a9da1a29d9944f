"""Serve the pages of a simulated account as fast as possible, so that a benchmark measures the reader.

    python benchmarks/pages.py build/bench/200000 --chats 20000 --messages 200000

The sandbox's rows are written to files once, newest first; a page is a range of a file. `GET /_taken` returns the
number of requests and rows since the previous call.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import sys
import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import msgspec
import typer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "pipelines"))

from msgbubbles_sync.sandbox import KEY, Account, Knobs, seed  # noqa: E402
from msgbubbles_sync.sandbox.listing import chat_row, message_rows, number_rows  # noqa: E402

NOW = datetime(2026, 11, 1, tzinfo=UTC)
DAYS = 365
# Seeding is slow, so larger accounts repeat the same chats over several years.
SEEDED_MESSAGES = 200_000
LISTS = {"chats": "last_message_at", "messages": "created_at"}


def write_account(folder: Path, chats: int, messages: int) -> None:
    """Write the lists of an account into `folder`, unless they exist."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with_messages = min(messages, SEEDED_MESSAGES)
    years = messages // with_messages
    account = Account()
    seed(account, now=NOW, chats=chats // years, messages=with_messages, days=DAYS)
    for name in LISTS:
        with (folder / f"{name}.json").open("wb") as rows, (folder / f"{name}.index").open("wb") as index:
            times, ends = array("q"), array("Q")
            for year in range(years):
                for row in _rows(account, name):
                    at = datetime.fromisoformat(row[LISTS[name]]) - year * timedelta(days=DAYS)
                    rows.write(msgspec.json.encode(_years_ago(row, year) if year else row) + b",")
                    times.append(-round(at.timestamp() * 1000))
                    ends.append(rows.tell())
            times.tofile(index)
            ends.tofile(index)
    (folder / "numbers.json").write_bytes(msgspec.json.encode(number_rows(account)))
    account.close()
    (folder / "done").touch()


def _rows(account: Account, name: str) -> Iterator[dict[str, Any]]:
    knobs, step = Knobs(), 1000
    order = "last_us" if name == "chats" else "created_us"
    keys = [row["id"] for row in account.all(f"SELECT id FROM {name} ORDER BY {order} DESC, id")]  # noqa: S608
    for start in range(0, len(keys), step):
        some = keys[start : start + step]
        found = account.all(f"SELECT * FROM {name} WHERE id IN ({', '.join('?' * len(some))})", some)  # noqa: S608
        found.sort(key=lambda row: (-row[order], row["id"]))
        yield from (chat_row(row, knobs) for row in found) if name == "chats" else message_rows(account, knobs, found)


def _years_ago(value: Any, years: int) -> Any:
    """Return a row with its times moved back by years, and with its own ids."""
    if isinstance(value, dict):
        return {name: _years_ago(item, years) for name, item in value.items()}
    if isinstance(value, list):
        return [_years_ago(item, years) for item in value]
    if isinstance(value, str) and len(value) == 36 and value[8] == value[23] == "-":
        return str(UUID(int=UUID(value).int ^ years))
    if isinstance(value, str) and len(value) == 24 and value.endswith("Z"):
        at = datetime.fromisoformat(value) - years * timedelta(days=DAYS)
        return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"
    return value


class Listing:
    """One list, newest first."""

    def __init__(self, folder: Path, name: str) -> None:
        raw = (folder / f"{name}.index").read_bytes()
        self._minus_ms, self._ends = array("q"), array("Q")
        self._minus_ms.frombytes(raw[: len(raw) // 2])
        self._ends.frombytes(raw[len(raw) // 2 :])
        with (folder / f"{name}.json").open("rb") as file:
            self._rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._ends)

    def page(self, limit: int, before: str | None) -> tuple[int, bytes, bool]:
        """Return the number of rows before a time, the rows, and whether there are more."""
        at_ms = None if before is None else round(datetime.fromisoformat(before).timestamp() * 1000)
        first = 0 if at_ms is None else bisect_right(self._minus_ms, -at_ms)
        last = min(first + limit, len(self))
        if first == last:
            return 0, b"", False
        return (
            last - first,
            self._rows[self._ends[first - 1] if first else 0 : self._ends[last - 1] - 1],
            last < len(self),
        )


class Pages:
    """The account. Answers requests with a status and a body."""

    def __init__(self, folder: Path, limit_per_minute: int | None, window_seconds: float = 60.0) -> None:
        self._lists = {f"/v1/{name}": Listing(folder, name) for name in LISTS}
        self._numbers = (folder / "numbers.json").read_bytes()
        self._limit = limit_per_minute
        self._window_seconds = window_seconds
        self._recent: deque[float] = deque()
        self._taken = {"requests": 0, "rows": 0, "refused": 0, "seconds": 0.0}
        self._began = self._ended = 0.0

    def answer(self, target: str) -> tuple[int, bytes]:
        url = urlsplit(target)
        if url.path == "/_taken":
            taken, self._taken = self._taken, {"requests": 0, "rows": 0, "refused": 0, "seconds": 0.0}
            return 200, json.dumps(taken).encode()
        now = time.monotonic()
        if not self._taken["requests"]:
            self._began = now
        self._taken["requests"] += 1
        self._taken["seconds"] = now - self._began
        if self._is_over_limit(now):
            self._taken["refused"] += 1
            return 429, b'{"error":"rate_limited","message":"Too many requests"}'
        if url.path == "/v1/numbers":
            return 200, b'{"data":' + self._numbers + b',"has_more":false}'
        query = parse_qs(url.query)
        if url.path not in self._lists or "conversation_id" in query:
            return 404, b'{"error":"not_found","message":"Not here"}'
        count, rows, has_more = self._lists[url.path].page(
            int(query.get("limit", ["50"])[0]), query.get("before", [None])[0]
        )
        self._taken["rows"] += count
        return 200, b'{"data":[' + rows + b'],"has_more":' + (b"true" if has_more else b"false") + b"}"

    def _is_over_limit(self, now: float) -> bool:
        if self._limit is None:
            return False
        while self._recent and self._recent[0] <= now - self._window_seconds:
            self._recent.popleft()
        if len(self._recent) >= self._limit:
            return True
        self._recent.append(now)
        return False


class Connection(asyncio.Protocol):
    """The part of HTTP that the clients of a benchmark use: GET and persistent connections."""

    def __init__(self, pages: Pages, latency_seconds: float) -> None:
        self._pages = pages
        self._latency_seconds = latency_seconds
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            if self._latency_seconds:
                asyncio.get_running_loop().call_later(self._latency_seconds, self._send, head)
            else:
                self._send(head)

    def _send(self, head: bytes) -> None:
        status, body = self._pages.answer(head.split(b" ", 2)[1].decode())
        lines = [
            f"HTTP/1.1 {status} X",
            f"Date: {formatdate(usegmt=True)}",
            "Content-Type: application/json",
            "X-Request-Id: req_bench",
            f"Content-Length: {len(body)}",
            *(["Retry-After: 1"] if status == 429 else []),
        ]
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)


async def serve(pages: Pages, latency_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pages, latency_seconds), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{port}/v1", "key": KEY}) + "\n")
    sys.stdout.flush()
    # Run until the parent process exits.
    await loop.run_in_executor(None, sys.stdin.buffer.read)


def main(
    folder: Path,
    chats: Annotated[int, typer.Option()] = 20_000,
    messages: Annotated[int, typer.Option()] = 200_000,
    latency_seconds: Annotated[float, typer.Option(help="Delay before each response.")] = 0.0,
    limit_per_minute: Annotated[int | None, typer.Option(help="Requests per minute before responses are 429.")] = None,
) -> None:
    write_account(folder, chats, messages)
    asyncio.run(serve(Pages(folder, limit_per_minute), latency_seconds))


if __name__ == "__main__":
    typer.run(main)
