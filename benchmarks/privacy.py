"""Measure the cost of each privacy preset as a ratio to `full`: pages of messages from bytes to Arrow.

    python benchmarks/privacy.py --messages 100000

Without network and load, to measure only the steps that a policy affects. The presets take turns in one process, and
the best round of each counts.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "pipelines"))

from msgbubbles.envelope import decode_page  # noqa: E402
from msgbubbles.models import Message  # noqa: E402
from msgbubbles.policy import PRESETS, Pseudonymizer  # noqa: E402
from msgbubbles.redact import Redactor  # noqa: E402
from msgbubbles.responses import Answer  # noqa: E402
from msgbubbles.source.buffer import RowBuffer  # noqa: E402

ROUNDS = 5
AT = datetime(2026, 3, 1, tzinfo=UTC)


def build_pages(messages: int, people: int) -> list[Answer]:
    def message(number: int) -> dict[str, Any]:
        at = f"2026-03-01T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000Z"
        metadata = {"source": "crm"} if number % 10 == 0 else None
        files = [{"id": f"a{number}", "filename": "photo.jpg", "mime_type": "image/jpeg", "size_bytes": 1000}]
        return {
            "id": f"00000000-0000-4000-8000-{number:012d}", "conversation_id": f"c{number % people}",
            "direction": "inbound", "status": "received", "channel": "imessage", "text": f"What about number {number}?",
            "effect": None, "reply_to": None, "error": None, "metadata": metadata,
            "sender": f"+1415555{number % people:04d}", "sent_at": at, "delivered_at": at, "read_at": None,
            "created_at": at, "updated_at": at, "attachments": files if number % 30 == 0 else [],
        }  # fmt: skip

    return [
        Answer(200, json.dumps({"data": [message(n) for n in range(start, start + 100)]}).encode(), None, AT, AT)
        for start in range(0, messages, 100)
    ]


def measure_seconds(answers: list[Answer], redactor: Redactor) -> float:
    """Return the seconds from bytes to Arrow."""
    buffer = RowBuffer(("messages", "attachments"))
    began = time.perf_counter()
    for answer in answers:
        page = decode_page(Message, "messages", 100, answer)
        buffer.add(page if redactor.is_idle else redactor.page(page))
        for _ in buffer.flush_full():
            pass
    for _ in buffer.flush():
        pass
    return time.perf_counter() - began


def main(messages: Annotated[int, typer.Option(min=100)] = 100_000, people: int = 5_000) -> None:
    answers = build_pages(messages, people)
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, policy in PRESETS.items():
            redactor = Redactor(policy, Pseudonymizer("of the benchmark, and long enough to be a key"))
            redactor.add_own_numbers(["+14155559999"])
            best[name] = min(best.get(name, 1e9), measure_seconds(answers, redactor))
    for name, seconds in best.items():
        typer.echo(f"{name:10} {messages / seconds:9,.0f} messages/s   {seconds / best['full']:.2f} x full")


if __name__ == "__main__":
    typer.run(main)
