"""Serve an account whose rows share timestamps across page boundaries, and which changes while it is read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

from msgbubbles_sync.sandbox import Account, Knobs, NewMessage, Server, serve

CHATS, MESSAGES = 2000, 20_000
# An import creates many messages with one timestamp, but fewer than a page has, so that all can be read.
TIES = (3, 10, 40)
CHANGES_EVERY_REQUESTS = 5
OURS = "+14155550100"


@contextmanager
def changing_account() -> Iterator[tuple[Server, Changes]]:
    """Serve the account, and yield the server and the account's changes."""
    chance = random.Random(7)  # noqa: S311 - test data, not a secret
    account = Account()
    account.add_number(OURS, "Support")
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(days=300)
    with account.bulk():
        chats = [account.add_chat(OURS, f"+1415555{number:04}", at, chat_id=_id(chance)) for number in range(CHATS)]
        waiting, left = list(chats), MESSAGES
        messages = []
        while left > 0:
            at += timedelta(seconds=chance.uniform(10, 1900))
            count = min(left, 1 if chance.random() < 0.9 else chance.choice(TIES))
            messages += [_message(chance, waiting.pop() if waiting else chance.choice(chats), at) for _ in range(count)]
            left -= count
        account.add_messages(messages)
    changes = Changes(chats, {message.id for message in messages})
    with serve(account, Knobs(on_request=changes.happen)) as server:
        yield server, changes
    account.close()


class Changes:
    """Adds messages to old chats every few requests, which moves these to the top of the list."""

    def __init__(self, chats: list[str], messages: set[str]) -> None:
        self.chats, self.messages = chats, messages
        self.is_on = True
        self._chance = random.Random(8)  # noqa: S311 - test data
        self._requests = 0

    def happen(self, account: Account, _number: int) -> None:
        self._requests += 1
        if self.is_on and self._requests % CHANGES_EVERY_REQUESTS == 0:
            chats = self._chance.sample(self.chats, 3)
            new = [_message(self._chance, chat, datetime.now(UTC)) for chat in chats]
            account.add_messages(new)
            self.messages |= {message.id for message in new}


def _message(chance: random.Random, chat_id: str, at: datetime) -> NewMessage:
    return NewMessage(chat_id, "outbound", "hello", at, "sent", sender=OURS, id=_id(chance))


def _id(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))
