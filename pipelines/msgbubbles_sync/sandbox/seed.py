"""Generate realistic conversations: few numbers, many chats, a heavy tail, office hours and replies.

Everything follows from the seed and the time, so the same two give the same account. Handles are from number ranges
and domains that are reserved for fiction.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any
from uuid import UUID

from .account import EPOCH, Account, NewMessage, to_us

NUMBERS = (
    ("+14155550100", "Support", ("imessage", "sms")),
    ("+14155550101", "Sales", ("imessage", "sms", "whatsapp")),
    ("+442079460100", "Europe", ("whatsapp", "sms")),
)
# How busy each hour of the day is (UTC): quiet at night, two peaks in office hours.
HOURS = (1, 1, 0, 0, 0, 1, 2, 4, 8, 12, 14, 13, 9, 11, 14, 14, 12, 9, 7, 6, 5, 4, 3, 2)
WEEKEND = 0.25
GROUPS = 0.15
TITLES = ("Moving day", "Site visit", "Order 4711", "Family trip", "Q4 launch", "Book club", "Bike repair", "Keys")
OPENINGS = (
    "Hi, is the order on its way?",
    "Good morning ☀️",
    "Can we move the appointment?",
    "Is this still free?",
    "Hello! I have a question about my invoice.",
    "My package never arrived 😕",
    "Are you open on Saturday?",
)
REPLIES = (
    "Sure!",
    "One moment, I'll check.",
    "Thanks 🙏",
    "That works for me 👍",
    "Could you send a photo?",
    "It left the warehouse this morning 📦",
    "Sorry about that!\nWe'll send a new one today.",
    "No problem",
    "See you then 🎉",
    "Which size do you need?",
    "Ok",
    "Perfect, thank you so much! ❤️",
)
FAILED: dict[str, Any] = {"status": "failed", "error": {"code": "send_failed", "message": "Not delivered"}}
# A message is read soon after it was sent: among the newest, which a run reads again.
LATELY_DELIVERED = """SELECT id FROM (SELECT id, status FROM messages ORDER BY created_us DESC LIMIT 90)
WHERE status = 'delivered' LIMIT 5"""
FILES = (("photo.jpg", "image/jpeg"), ("invoice.pdf", "application/pdf"), ("clip.mov", "video/quicktime"))


@dataclass(frozen=True)
class _Thread:
    id: str
    from_handle: str
    remote_handle: str
    channel: str
    people: tuple[str, ...]
    title: str | None = None

    @property
    def is_group(self) -> bool:
        return len(self.people) > 1


def seed(
    account: Account, *, now: datetime, chats: int = 240, messages: int = 6000, days: int = 120, seed: int = 7
) -> None:
    """Fill an empty account with the conversations of the last `days` days."""
    chance = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    threads = [_thread(chance, number) for number in range(chats)]
    weights = [1 / (rank + 4) ** 0.8 for rank in range(chats)]
    chance.shuffle(weights)
    cumulated = list(accumulate(weights))
    conversations: dict[str, list[NewMessage]] = {thread.id: [] for thread in threads}
    remaining = messages
    # Each chat gets one conversation first; the active ones get more.
    waiting = list(threads)
    while remaining > 0:
        thread = waiting.pop() if waiting else chance.choices(threads, cum_weights=cumulated)[0]
        length = min(remaining - len(waiting), 1 + int(chance.expovariate(1 / 5)))
        conversation = _conversation(chance, thread, _office_hour(chance, now, days), max(length, 1), now)
        conversations[thread.id] += conversation
        remaining -= len(conversation)
    _fail_an_answer(conversations.values())
    with account.bulk():
        for handle, label, channels in NUMBERS:
            account.add_number(handle, label, channels)
        for thread in threads:
            if conversations[thread.id]:
                _add_thread(account, thread, min(message.at for message in conversations[thread.id]))
                account.add_messages(conversations[thread.id])
        account.remember("per_day", str(messages / days))
        account.remember("seed", str(seed))
        account.remember("saved_us", str(to_us(now)))


def advance(account: Account, now: datetime, minimum: int = 40) -> int:
    """Add the activity since the account was last used. Returns the number of new messages.

    These are at least `minimum` new messages in about a dozen chats, one of them new, a renamed group and later
    statuses.
    """
    saved_us = int(account.recall("saved_us") or 0)
    since = EPOCH + timedelta(microseconds=saved_us)
    if now <= since:
        return 0
    per_day = float(account.recall("per_day") or 0)
    count = min(max(minimum, int(per_day * (now - since) / timedelta(days=1))), 5000)
    chance = random.Random(f"{account.recall('seed')}-{saved_us}")  # noqa: S311
    recent = account.all("SELECT * FROM chats WHERE NOT deleted ORDER BY last_us DESC, id LIMIT 100")
    threads = [
        _Thread(row["id"], row["from_handle"], row["remote_handle"], "imessage", _people(account, row["id"]))
        for row in chance.sample(recent, min(len(recent), max(11, count // 10)))
    ]
    newcomer = _thread(chance, chance.randrange(10**6))
    moments = sorted(since + (now - since) * chance.random() for _ in range(count))
    messages = [_message(chance, chance.choice([*threads, newcomer]), at, now) for at in moments]
    messages[0] = _message(chance, newcomer, moments[0], now)
    with account.bulk():
        _add_thread(account, newcomer, moments[0])
        account.add_messages(messages)
        group = account.one("SELECT id FROM chats WHERE is_group AND NOT deleted ORDER BY random() LIMIT 1")
        if group:
            account.rename(group["id"], chance.choice(TITLES), now)
        for row in account.all(LATELY_DELIVERED):
            account.set_status(row["id"], "read", now)
        account.remember("saved_us", str(to_us(now)))
    return len(messages)


def _thread(chance: random.Random, number: int) -> _Thread:
    from_handle, _, channels = NUMBERS[chance.choices((0, 1, 2), (5, 3, 2))[0]]
    if chance.random() < GROUPS:
        people = tuple(dict.fromkeys(_handle(chance) for _ in range(chance.randint(3, 8))))
        title = chance.choice(TITLES) if chance.random() < 0.7 else None
        return _Thread(_id(chance), from_handle, f"group:{_id(chance)[:8]}{number}", "imessage", people, title)
    handle = _handle(chance)
    return _Thread(_id(chance), from_handle, handle, chance.choice(channels), (handle,))


def _handle(chance: random.Random) -> str:
    if chance.random() < 0.1:
        return f"person{chance.randrange(10**5)}@example.com"
    return f"+1{chance.randint(201, 989)}55501{chance.randrange(100):02}"


def _office_hour(chance: random.Random, now: datetime, days: int) -> datetime:
    while True:
        day = now - timedelta(days=chance.random() ** 1.3 * days)
        if day.weekday() < 5 or chance.random() < WEEKEND:
            hour = chance.choices(range(24), HOURS)[0]
            at = day.replace(hour=hour, minute=chance.randrange(60), second=chance.randrange(60))
            if at < now:
                return at.replace(microsecond=chance.randrange(10**6))


def _conversation(chance: random.Random, thread: _Thread, at: datetime, length: int, now: datetime) -> list[NewMessage]:
    messages: list[NewMessage] = []
    inbound = chance.random() < 0.65
    for turn in range(length):
        if at >= now:
            break
        message = _message(chance, thread, at, now, inbound=inbound, opening=turn == 0)
        if messages and chance.random() < 0.04:
            message = replace(message, reply_to=messages[-1].id)
        messages.append(message)
        if chance.random() < 0.75:
            inbound = not inbound
        minutes = 4 if 7 <= at.hour < 19 else 45
        at += timedelta(minutes=chance.expovariate(1 / minutes), milliseconds=1)
    return messages or [_message(chance, thread, now - timedelta(seconds=chance.randint(60, 600)), now)]


def _message(
    chance: random.Random,
    thread: _Thread,
    at: datetime,
    now: datetime,
    *,
    inbound: bool | None = None,
    opening: bool = False,
) -> NewMessage:
    inbound = chance.random() < 0.5 if inbound is None else inbound
    message = NewMessage(
        chat_id=thread.id,
        direction="inbound" if inbound else "outbound",
        text=chance.choice(OPENINGS if opening else REPLIES),
        at=at,
        status="received",
        channel=thread.channel,
        sender=chance.choice(thread.people) if inbound else thread.from_handle,
        id=_id(chance),
    )
    if chance.random() < 0.03:
        name, mime_type = chance.choice(FILES)
        message = replace(message, attachments=[(name, mime_type, chance.randint(10_000, 4_000_000))])
    if chance.random() < 0.02:
        message = replace(message, effect=chance.choice(("confetti", "balloons", "slam")))
    if inbound:
        return message
    if chance.random() < 0.1:
        message = replace(message, metadata={"agent": f"agent-{chance.randint(1, 9)}", "campaign": None})
    return _with_status(chance, message, now - at)


def _with_status(chance: random.Random, message: NewMessage, age: timedelta) -> NewMessage:
    if age < timedelta(seconds=2):
        return replace(message, status="queued", channel=None)
    if chance.random() < 0.015:
        return replace(message, **FAILED)
    delivered_at = message.at + min(timedelta(seconds=chance.uniform(1, 20)), age / 2)
    if chance.random() < 0.1 or age < timedelta(seconds=30):
        return replace(message, status="sent")
    if chance.random() < 0.3:
        return replace(message, status="delivered", delivered_at=delivered_at)
    read_at = delivered_at + min(timedelta(minutes=chance.expovariate(1 / 15)), age / 2)
    return replace(message, status="read", delivered_at=delivered_at, read_at=read_at)


def _fail_an_answer(conversations: Collection[list[NewMessage]]) -> None:
    """Let the latest answer of a chat fail, the longest ago: new activity (`advance`) is in more recent chats."""
    for messages in conversations:
        messages.sort(key=lambda message: message.at)
    for messages in sorted(filter(None, conversations), key=lambda messages: messages[-1].at):
        if [message.direction for message in messages[-2:]] == ["inbound", "outbound"]:
            messages[-1] = replace(messages[-1], delivered_at=None, read_at=None, **FAILED)
            return


def _add_thread(account: Account, thread: _Thread, at: datetime) -> None:
    account.add_chat(
        thread.from_handle,
        thread.remote_handle,
        at,
        is_group=thread.is_group,
        title=thread.title,
        participants=thread.people if thread.is_group else (),
        chat_id=thread.id,
    )


def _people(account: Account, chat_id: str) -> tuple[str, ...]:
    row = account.one("SELECT remote_handle, is_group FROM chats WHERE id = ?", (chat_id,))
    if row is not None and not row["is_group"]:
        return (row["remote_handle"],)
    return tuple(account.participants(chat_id)) or ("someone@example.com",)


def _id(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))
