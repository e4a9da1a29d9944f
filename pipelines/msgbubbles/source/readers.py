"""What a run reads, in order, and through which client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from msgbubbles.client import Client
from msgbubbles.private_client import build_client
from msgbubbles.redact import Redactor

from .chats import read_chats
from .messages import read_messages
from .numbers import read_numbers
from .run import Run
from .streams import Read

# Messages before chats: then the chat of every new message exists when the chats are read.
READERS: tuple[tuple[Read, tuple[str, ...]], ...] = (
    (read_numbers, ("numbers",)),
    (read_messages, ("messages", "attachments")),
    (read_chats, ("chats", "messages", "attachments", "participant_reads", "participant_lists")),
)
# The requests for the newest page of each list.
NEWEST_PAGES = ("list_numbers", "list_messages", "list_chats")


def connect(api_key: str, redactor: Redactor, run: Run) -> Client:
    """Build the client of a run. It has the answers of `run.newest_pages` already."""

    def stored_chats(ids: Sequence[str]) -> Sequence[str]:
        return run.warehouse.read_chats(ids) if run.warehouse else ()

    transport = run.build_transport(api_key, run.settings)
    client = build_client(transport, redactor, stored_chats, run.settings.sender_field)
    return cast(Client, AnsweredClient(client, run.newest_pages)) if run.newest_pages else client


class AnsweredClient:
    """A client that has answers to requests for the newest page of a list: it returns each of them once."""

    def __init__(self, client: Client, answers: dict[str, Callable[[], Any]]) -> None:
        self._client, self._answers = client, answers

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return partial(self._ask, name, method) if name in NEWEST_PAGES else method

    def _ask(self, name: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
        is_newest = not any((*values, *options.values()))
        return self._answers.pop(name)() if is_newest and name in self._answers else method(*values, **options)

    def __enter__(self) -> AnsweredClient:
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.__exit__(*error)
