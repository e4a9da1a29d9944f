"""Test with random rows and payloads that no value that `tables` tags as personal is loaded under a policy.

Each tagged value contains a unique word, to find it anywhere. Erasures are tested in `tests/e2e/test_privacy.py`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.sizes import pick_size
from msgbubbles.decode import read_row
from msgbubbles.models import Attachment, Chat, Message, Number, Page, Row
from msgbubbles.policy import ORDERS, PRESETS, Policy, Pseudonymizer
from msgbubbles.redact import _REDACTIONS, Redactor
from msgbubbles.redact_payloads import FIELDS, OBJECTS
from msgbubbles.source.arrow import build_arrow_table
from msgbubbles.source.buffer import RowBuffer
from msgbubbles.tables import TABLES, Pii
from msgbubbles_sync.groups.ledger import Entry, Observation
from msgbubbles_sync.groups.redact import redact_row
from msgbubbles_sync.tables import GROUP_OPERATIONS, GROUP_SIGHTINGS, WEBHOOK_EVENTS
from msgbubbles_sync.webhooks.events import parse_event
from msgbubbles_sync.webhooks.redact import drop_payload, redact_delivery
from msgbubbles_sync.webhooks.spool import Delivery

AT = datetime(2026, 3, 1, tzinfo=UTC)
examples = settings(
    deadline=None, max_examples=pick_size(30, nightly=300), suppress_health_check=[HealthCheck.too_slow]
)
PSEUDONYMIZER = Pseudonymizer("of a test, and long enough to be a key")
MODELS: dict[str, type[Row]] = {"chats": Chat, "messages": Message, "attachments": Attachment, "numbers": Number}
# The settings that decide about each kind. Payloads and rejected rows may hold all kinds.
SETTINGS = {pii: names for pii, (names, _) in _REDACTIONS.items()}
# No NUL, which is stored as another character.
AROUND = st.sampled_from(["", " ", "a ", '"', "\\", "\n", "\u2028", "é", "😀", "="])
PERSONAL = (Pii.HANDLE, Pii.OWN_HANDLE, Pii.TITLE, Pii.TEXT, Pii.FILE_NAME, Pii.METADATA, Pii.EXTRA, Pii.ANSWER)


class Words:
    """Makes values with a word in each, and remembers of which kind it is."""

    def __init__(self) -> None:
        self.kinds: dict[str, Pii] = {}
        self._numbers = count(1)

    def new_id(self) -> str:
        return f"id{next(self._numbers)}"

    def value(self, draw: st.DrawFn, pii: Pii) -> Any:
        """Return a value of a kind, as the API sends it; some have another type than documented."""
        number = next(self._numbers)
        if pii in (Pii.HANDLE, Pii.OWN_HANDLE):
            word = f"4155550{number:03d}"
            written = draw(st.sampled_from([f"+1{word}", f"tel:+1{word}", f"User{word}@example.com"]))
        else:
            word = f"canary{number:03d}of{pii.name.lower().replace('_', '')}"
            written = draw(AROUND) + word + draw(AROUND)
        self.kinds[word] = pii
        if pii in (Pii.METADATA, Pii.EXTRA):
            return draw(st.sampled_from([written, {"a": [written]}, {written: 1}, [[written]]]))
        return written

    def surviving(self, loaded: Any, policy: Policy) -> dict[str, Pii]:
        """Return the words that are in `loaded` and that the policy leaves out."""
        text = repr(loaded)
        return {word: pii for word, pii in self.kinds.items() if word in text and is_hidden(pii, policy)}


def is_hidden(pii: Pii, policy: Policy) -> bool:
    return any(getattr(policy, name) != ORDERS[name][0] for name in SETTINGS[pii])


def draw_row(draw: st.DrawFn, words: Words, table: str) -> dict[str, Any]:
    """Draw an object as the API sends it: each field may be missing, null, or of another type."""
    row: dict[str, Any] = {"unknown": words.value(draw, Pii.EXTRA)}
    columns = {column.name: column for column in TABLES[table].columns}
    for field in msgspec.structs.fields(MODELS[table]):
        column = columns.get(field.name)
        if column is None or field.name == "extra" or draw(st.integers(0, 9)) == 0:
            continue
        if column.pii in PERSONAL:
            row[field.encode_name] = words.value(draw, column.pii)
        elif column.pii is Pii.ID:
            row[field.encode_name] = words.new_id()
        elif column.pii is Pii.ERROR:
            row["error"] = {"code": "refused", "message": words.value(draw, Pii.EXTRA)}
        elif column.pii is Pii.WORD and draw(st.booleans()):
            row[field.encode_name] = {"of": words.value(draw, Pii.EXTRA)}
        elif column.type == "timestamp":
            row[field.encode_name] = draw(st.sampled_from(["2026-03-01T00:00:00Z", None]))
    if table == "messages":
        row["attachments"] = [draw_row(draw, words, "attachments") for _ in range(draw(st.integers(0, 2)))]
        if draw(st.booleans()):
            row["author"] = {"name": words.value(draw, Pii.HANDLE), "handle": words.value(draw, Pii.HANDLE)}
    return row


def draw_payload(draw: st.DrawFn, words: Words, depth: int = 2) -> dict[str, Any]:
    """Draw the payload of an event: known fields and unknown ones, and objects in it."""
    payload: dict[str, Any] = {"type": "message.reaction", "unknown": words.value(draw, Pii.EXTRA)}
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=12, unique=True)):
        column = FIELDS[name]
        if column.pii in PERSONAL:
            payload[name] = words.value(draw, column.pii)
        elif column.pii is Pii.ID:
            payload[name] = words.new_id()
        elif column.pii is not Pii.NONE:
            payload[name] = {"of": words.value(draw, Pii.EXTRA)} if draw(st.booleans()) else "word"
    for name in (
        draw(st.lists(st.sampled_from(sorted(OBJECTS - payload.keys())), max_size=3, unique=True)) if depth else ()
    ):
        payload[name] = draw_payload(draw, words, depth - 1)
    return payload


def loaded_rows(redactor: Redactor, table: str, rows: list[dict[str, Any]]) -> list[Any]:
    """Return all that is loaded of rows of the API, as values of Arrow tables."""
    page: Page[Any] = Page([], [], None, False, AT, AT)
    for row in rows:
        decoded, rejected = read_row(MODELS[table], msgspec.Raw(json.dumps(row).encode()), table, "req_1")
        page.rows.extend([decoded] if decoded is not None else [])
        page.rejected.extend(rejected)
    buffer = RowBuffer(("chats", "messages", "attachments", "numbers", "rejected_rows"))
    buffer.add(redactor.page(page))
    return [item.data.to_pylist() for item in buffer.flush()]


def loaded_event(redactor: Redactor, payload: dict[str, Any]) -> list[Any]:
    delivery = redact_delivery(Delivery("evt_1", AT, json.dumps(payload)), redactor)
    event = None if delivery is None else parse_event(delivery)
    if event is None:
        return []
    event = drop_payload(event) if redactor.policy.webhook_payload == "drop" else event
    # `message` goes into the table of messages.
    return [build_arrow_table(WEBHOOK_EVENTS, [(event, AT)]).to_pylist(), event.message, delivery]


def loaded_ledger(redactor: Redactor, draw: st.DrawFn, words: Words) -> list[Any]:
    handles = tuple(words.value(draw, Pii.HANDLE) for _ in range(2))
    title, ours = words.value(draw, Pii.TITLE), words.value(draw, Pii.OWN_HANDLE)
    entry = Entry("o", "p", "k", "add", "g", ours, handles, title, None, None, AT,
                  error_message=words.value(draw, Pii.ANSWER))  # fmt: skip
    observation = Observation("k", "g", ours, title, handles, False, AT)
    rows = (
        (GROUP_OPERATIONS, redact_row(redactor, GROUP_OPERATIONS, entry)),
        (GROUP_SIGHTINGS, redact_row(redactor, GROUP_SIGHTINGS, observation)),
    )
    return [{name: getattr(row, name, None) for name in table.column_names} for table, row in rows]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Draw any policy that drops what it does not know; of the others, unknown fields may hold anything."""
    chosen: dict[str, Any] = {name: draw(st.sampled_from(order)) for name, order in ORDERS.items()}
    if chosen["handles"] == "keep":
        chosen["own_numbers"] = "keep"
    return Policy(**chosen | {"extra": "drop", "webhook_payload": chosen["webhook_payload"]})


@examples
@given(st.data(), st.sampled_from([PRESETS["analytics"], PRESETS["minimal"]]) | policies())
def test_no_tagged_value_survives_a_policy(data: st.DataObject, policy: Policy) -> None:
    words, redactor = Words(), Redactor(policy, PSEUDONYMIZER)
    draw: Any = data.draw
    for table in ("chats", "messages", "numbers"):
        rows = [draw_row(draw, words, table) for _ in range(2)]
        assert words.surviving(loaded_rows(redactor, table, rows), policy) == {}, rows
    payload = draw_payload(draw, words)
    assert words.surviving(loaded_event(redactor, payload), policy) == {}, payload
    assert words.surviving(loaded_ledger(redactor, draw, words), policy) == {}


@examples
@given(st.data())
def test_every_value_is_loaded_without_a_policy(data: st.DataObject) -> None:
    """Show that the words of the test above are found where nothing is left out."""
    words, draw = Words(), data.draw
    rows = [draw_row(draw, words, "messages") | {"id": "m1"}]  # type: ignore[arg-type]
    loaded = loaded_rows(Redactor(), "messages", rows)
    payload = draw_payload(draw, words)  # type: ignore[arg-type]
    loaded += loaded_event(Redactor(), payload)
    text = repr(loaded)
    assert [word for word in words.kinds if word not in text] == []


@pytest.mark.parametrize("pii", [pii for pii in Pii if pii not in SETTINGS])
def test_kinds_without_a_setting_are_in_no_row_of_the_api(pii: Pii) -> None:
    assert not [table.name for name in MODELS for table in [TABLES[name]] if table.columns_with(pii)]
