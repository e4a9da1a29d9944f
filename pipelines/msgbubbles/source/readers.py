"""What a run reads, in order, and through which client."""

from __future__ import annotations

from collections.abc import Sequence

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


def build_run_client(api_key: str, redactor: Redactor, run: Run) -> Client:
    """Build the client of a run."""

    def stored_chats(ids: Sequence[str]) -> Sequence[str]:
        return run.warehouse.read_chats(ids) if run.warehouse else ()

    transport = run.build_transport(api_key, run.settings)
    return build_client(transport, redactor, stored_chats, run.settings.sender_field)
