"""What the text columns of the warehouse hold, so far as it is about people.

One list, by table and column, the key of a table first. From it follow what a policy leaves of a row that is read
(`redact`), what it makes of rows that have landed (`msgbubbles_sync.privacy.reapply`), and where erased people are
looked for (`msgbubbles_sync.privacy.erase`). A test fails for a column of text or JSON that is not in it.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "handle",  # a number or an address of anybody
    "own_handle",  # one of our own numbers
    "handles",  # a JSON list of handles
    "handle_key",  # a key that ends with `|` and a handle
    "title",
    "text",
    "file_name",
    "mime_type",
    "word",  # one of a few words, by the API's documentation
    "words",  # a JSON list of those
    "error",  # JSON: a stable code, and anything besides
    "metadata",  # JSON of the sender's software
    "extra",  # JSON of fields that this version does not know
    "payload",  # JSON of a whole event
    "row",  # a whole row that could not be read
    "id",  # the API's own id
    "answer",  # the API's own words about a request
    "ours",  # written by this product or its user
]

PERSONAL: dict[str, dict[str, Kind]] = {
    "chats": {
        "id": "id", "from_handle": "own_handle", "remote_handle": "handle", "title": "title", "extra": "extra",
    },
    "messages": {
        "id": "id", "conversation_id": "id", "direction": "word", "status": "word", "channel": "word", "text": "text",
        "effect": "word", "reply_to": "id", "error": "error", "metadata": "metadata", "sender_handle": "handle",
        "extra": "extra",
    },
    "attachments": {
        "id": "id", "message_id": "id", "filename": "file_name", "mime_type": "mime_type", "extra": "extra",
    },
    "numbers": {
        "handle": "own_handle", "channels": "words", "label": "title", "status": "word", "extra": "extra",
    },
    "chat_titles": {"chat_id": "id", "title": "title"},
    "participant_reads": {"chat_id": "id", "handles": "handles"},
    "participant_lists": {"id": "handle_key", "chat_id": "id", "handle": "handle"},
    "stream_coverage": {"stream": "ours"},
    "rejected_rows": {"row_hash": "ours", "stream": "ours", "reason": "ours", "row": "row", "request_id": "id"},
    "failed_reads": {"id": "id", "kind": "ours", "error_code": "word"},
    "webhook_events": {
        "event_id": "id", "event_type": "word", "chat_id": "id", "message_id": "id", "handle": "handle",
        "direction": "word", "status": "word", "reaction": "text", "payload": "payload",
    },
    "group_operations": {
        "operation_id": "ours", "plan_id": "ours", "key": "ours", "operation": "ours", "chat_id": "id",
        "handles": "handles", "title": "title", "outcome": "ours", "error_code": "word", "error_message": "answer",
        "request_id": "id",
    },
    "group_member_operations": {
        "id": "handle_key", "operation_id": "ours", "chat_id": "id", "handle": "handle", "operation": "ours",
    },
    "group_sightings": {
        "key": "ours", "chat_id": "id", "from_handle": "own_handle", "title": "title", "handles": "handles",
    },
    "_account": {"claim": "ours"},
    "sync_runs": dict.fromkeys(
        (
            "run_id", "outcome", "error", "requests", "seconds", "tables", "streams", "repaired", "expired", "versions",
            "failed_tests", "held_marts", "failed_reads",
        ),
        "ours",
    ),
}  # fmt: skip


def columns_with(kind: Kind) -> list[tuple[str, str, str]]:
    """Return the columns of a kind: table, its key, and the column."""
    return [
        (table, next(iter(columns)), column)
        for table, columns in PERSONAL.items()
        for column, one in columns.items()
        if one == kind
    ]
