"""The state of earlier releases, and unreadable states."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from msgbubbles.errors import ConfigurationError
from msgbubbles.source.state import (
    ChatsState,
    FailedRead,
    MessagesState,
    NumbersState,
    ResourceState,
    States,
    decode,
    encode,
)

COMMON: dict[str, Any] = {"version": 2, "has_tables": ["numbers(handle)"], "complete": [0, 5]}
FAILED = {
    "kind": "chat",
    "id": "c1",
    "since_ms": 1,
    "last_tried_ms": 2,
    "tries": 3,
    "http_status": 500,
    "error_code": "x",
    "from_ms": None,
}
LIST: dict[str, Any] = {
    "covered": [[0, 5, 9]],
    "seen": ["f1"],
    "seen_ms": 9,
    "overflows": [[None, None], [3, 4]],
    "overflows_accepted": [[1, 2]],
    "overflows_done": {"3-4": ["c1", True, False]},
}
# Every key that a release has written.
RELEASED: dict[str, tuple[Any, dict[str, Any]]] = {
    "numbers": (NumbersState, {**COMMON, "seen": ["f1"]}),
    "messages": (MessagesState, {**COMMON, "feed": False, "feed_refused_ms": 7, "by_feed": LIST, "by_thread": LIST}),
    "chats": (
        ChatsState,
        {
            **COMMON,
            **LIST,
            "failed_reads": [FAILED],
            "missed": {"c1": 2},
            "threads": ["c2"],
            "lagging": {"c3": 4},
            "lagging_tries": {"c3": [1, 8]},
            "lagging_in_vain": 1,
            "told": {"c4": [5, 6]},  # codespell:ignore told
            "named_by_events": ["c5"],
            "head_swept_ms": 8,
            "timeless_asked_ms": 8,
            "participants_hidden_ms": 8,
            "participants_hidden": [["c6"]],
        },
    ),
}


@pytest.mark.parametrize("stream", RELEASED)
def test_released_state_survives_decoding_and_encoding(stream: str) -> None:
    kind, released = RELEASED[stream]
    resource = copy.deepcopy(released)
    encode(resource, decode(resource, ResourceState), decode(resource, kind))
    assert resource == released


def test_states_are_read_from_all_resources() -> None:
    states = States.from_resources({stream: released for stream, (_, released) in RELEASED.items()})
    assert states.failed_reads == [FailedRead("chat", "c1", 1, 2, 3, 500, "x")]
    assert states.messages.in_use.covered == [(0, 5, 9)]
    assert states.get_list("chats").overflows == [(None, None), (3, 4)]
    assert States.from_resources({}).get_list("messages").covered == []


@pytest.mark.parametrize(
    ("resource", "message"),
    [({"version": 3}, "upgrade"), ({"version": "1"}, "upgrade"), ({"covered": [[0, 1]]}, r"damaged .*\$\.covered")],
)
def test_unreadable_state_is_a_configuration_error(resource: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        decode(resource, ChatsState)
