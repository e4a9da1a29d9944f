"""Deliver events of the account to its webhook endpoints, signed, until each is answered with 2xx.

No public page describes how the API signs and builds deliveries. These are signed as in the Standard Webhooks
specification; the knobs set how a payload is built.
"""

from __future__ import annotations

import base64
import hmac
import json
import random
import sqlite3
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from uuid import uuid4

import httpx

from .account import Account, format_us, to_us
from .knobs import Knobs
from .listing import message_rows

EVENTS = (
    "message.received", "message.sent", "message.delivered", "message.read", "message.failed", "message.reaction",
    "conversation.typing",
)  # fmt: skip
# As in the Standard Webhooks specification.
HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
AT_ONCE, WORKERS = 64, 8
RETRY_SECONDS, MAX_RETRY_SECONDS = 0.2, 5.0


def webhook_row(row: sqlite3.Row) -> dict[str, object]:
    return {
        "id": row["id"],
        "url": row["url"],
        "events": json.loads(row["events"]),
        "created_at": format_us(row["created_us"]),
    }


class Deliverer:
    """Stores each event in the account, in the transaction of its change, and delivers it from there.

    The next deliverer continues with the events that this one could not deliver. `failures` counts the attempts that
    were not answered with 2xx.
    """

    def __init__(self, account: Account, knobs: Knobs) -> None:
        self.delivered = 0
        self.failures = 0
        self._account = account
        self._knobs = knobs
        self._random = random.Random(knobs.seed)  # noqa: S311 - faults, not secrets
        self._stop = threading.Event()
        self._has_work = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        account.on_event = self._add

    def __enter__(self) -> Deliverer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._has_work.set()
        self._thread.join(10)

    @property
    def waiting(self) -> int:
        """The number of deliveries that are not answered with 2xx yet."""
        return int(self._account.all("SELECT count(*) FROM deliveries")[0][0])

    def wait_until_delivered(self, timeout_seconds: float) -> bool:
        """Wait until all deliveries are answered. Returns whether they were in time."""
        until = time.monotonic() + timeout_seconds
        while self.waiting and time.monotonic() < until:
            time.sleep(0.02)
        return not self.waiting

    def _add(self, kind: str, at: datetime, chat_id: str, message_id: str | None, more: Mapping[str, object]) -> None:
        for row in self._account.all("SELECT id, events FROM webhooks"):
            if kind in json.loads(row["events"]):
                body = json.dumps(self._payload(kind, at, chat_id, message_id, more), ensure_ascii=False)
                self._account.run(
                    "INSERT INTO deliveries (delivery_id, webhook_id, body) VALUES (?, ?, ?)",
                    (f"msg_{uuid4().hex}", row["id"], body.encode()),
                )
                self._has_work.set()

    def _payload(
        self, kind: str, at: datetime, chat_id: str, message_id: str | None, more: Mapping[str, object]
    ) -> dict[str, object]:
        event_id, message = f"evt_{uuid4().hex}", {}
        if message_id is not None:
            rows = self._account.all("SELECT * FROM messages WHERE id = ?", (message_id,))
            message = message_rows(self._account, self._knobs, rows)[0]
        if self._knobs.webhook_payload == "flat":
            return {"event": kind, "conversation_id": chat_id, **message, **more}
        if self._knobs.webhook_payload == "ids":
            ids = {"conversation_id": chat_id} | ({"message_id": message_id} if message_id else {})
            return {"event_id": event_id, "event_type": kind, "timestamp": to_us(at) / 1e6, **ids, **more}
        inner: dict[str, object] = {"message": message} if message_id else {"conversation_id": chat_id}
        return {"id": event_id, "type": kind, "created_at": format_us(to_us(at)), **inner, **more}

    def _run(self) -> None:
        # The receivers are on this machine: no proxy of the environment, and no certificates, which take time to load.
        client = httpx.Client(timeout=5, trust_env=False, verify=False)  # noqa: S501
        with ThreadPoolExecutor(WORKERS) as pool, client as http:
            while not self._stop.is_set():
                self._has_work.clear()
                rows = self._account.all(
                    "SELECT deliveries.*, url, secret FROM deliveries JOIN webhooks ON webhooks.id = webhook_id "
                    "WHERE due <= ? ORDER BY due, number LIMIT ?",
                    (time.time(), AT_ONCE),
                )
                if not rows:
                    self._has_work.wait(RETRY_SECONDS)
                    continue
                for row, is_done in zip(rows, pool.map(lambda row: self._deliver(http, row), rows), strict=True):
                    self._store_result(row, is_done)

    def _deliver(self, http: httpx.Client, row: sqlite3.Row) -> bool:
        try:
            return http.post(row["url"], content=row["body"], headers=self.headers(row)).is_success
        except httpx.HTTPError:
            return False

    def headers(self, row: sqlite3.Row) -> dict[str, str]:
        key = base64.b64decode(row["secret"].removeprefix("whsec_"))
        timestamp = str(int(time.time()))
        content = f"{row['delivery_id']}.{timestamp}.".encode() + row["body"]
        signature = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
        values = (row["delivery_id"], timestamp, f"v1,{signature}")
        return dict(zip(HEADERS, values, strict=True)) | {"Content-Type": "application/json"}

    def _store_result(self, row: sqlite3.Row, is_done: bool) -> None:
        if is_done:
            self.delivered += 1
            if self._random.random() >= self._knobs.webhook_repeats:
                self._account.run("DELETE FROM deliveries WHERE number = ?", (row["number"],))
            return
        self.failures += 1
        wait = min(RETRY_SECONDS * 2 ** row["attempts"], MAX_RETRY_SECONDS)
        again = "UPDATE deliveries SET attempts = attempts + 1, due = ? WHERE number = ?"
        self._account.run(again, (time.time() + wait, row["number"]))
