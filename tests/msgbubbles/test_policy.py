from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.canary import handles_in, spellings, texts_in
from helpers.world import OURS
from msgbubbles.decode import SENDER_FIELDS, read_row
from msgbubbles.errors import ConfigurationError
from msgbubbles.models import Chat, Message, Number, Page, RejectedRow
from msgbubbles.policy import FULL, PRESETS, PSEUDONYM, Policy, Pseudonymizer, parse_policy
from msgbubbles.redact import ExcludedMessage, Redactor
from msgbubbles.redact_payloads import redact_payload
from msgbubbles.source.buffer import RowBuffer
from msgbubbles.source.dlt_source import _configure_redactor

KEY = "of a test, and long enough to be a key"
NAMES = Pseudonymizer(KEY)
AT = datetime(2026, 3, 1, tzinfo=UTC)
ANN, BEN = "+14155550111", "ben@example.com"
MINIMAL, ANALYTICS = PRESETS["minimal"], PRESETS["analytics"]


def redactor(policy: Policy, **more: Any) -> Redactor:
    return Redactor(policy, NAMES, **more)


def message(**fields: Any) -> Message:
    raw = msgspec.Raw(json.dumps({"id": "m1", "created_at": "2026-03-01T00:00:00.000Z"} | fields).encode())
    row, rejected = read_row(Message, raw, "messages", None)
    assert row is not None
    assert not rejected
    return row


def test_pseudonym_is_equal_for_all_spellings() -> None:
    assert NAMES.handle("+1 (415) 555-0111") == NAMES.handle(ANN) != NAMES.handle("+14155550112")
    assert NAMES.handle("Ben@Example.COM") == NAMES.handle(BEN)
    assert Pseudonymizer(KEY + ".").handle(ANN) != NAMES.handle(ANN)
    assert NAMES.handle(NAMES.handle(ANN)) == NAMES.handle(ANN), "applied twice, a policy changes nothing"
    assert NAMES.title(ANN)[2:] != NAMES.handle(ANN)[2:]


@pytest.mark.slow
@given(st.text(max_size=30))
def test_pseudonym_is_never_mistaken_for_a_number(written: str) -> None:
    pseudonym = NAMES.handle(written)
    assert PSEUDONYM.fullmatch(pseudonym)
    assert pseudonym.startswith("p_")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"preset": "maximal"}, "preset is one of full, analytics, minimal"),
        ({"text": "gone"}, 'text must be one of "drop", "keep", "length"'),
        ({"txt": "drop"}, "has no setting txt"),
        ({"text_days": 0}, "text_days must be a whole number of at least 1"),
        ({"own_numbers": "pseudonym"}, "requires handles"),
    ],
)
def test_invalid_policy_setting_is_refused_with_valid_values(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        parse_policy(settings)


@pytest.mark.parametrize("key", [None, "", "short"])
def test_policy_needs_a_strong_key(key: object) -> None:
    with pytest.raises(ConfigurationError, match="token_hex"):
        Pseudonymizer.from_key(key)


def test_settings_override_the_preset() -> None:
    assert parse_policy({}) == FULL
    assert parse_policy({"preset": "minimal", "text": "keep", "text_days": "30"}) == msgspec.structs.replace(
        MINIMAL, text="keep", text_days=30
    )
    assert MINIMAL.loosened(ANALYTICS) == []
    assert ANALYTICS.loosened(MINIMAL) == ["own_numbers", "text", "titles"]


def test_unknown_parts_of_a_message_are_dropped() -> None:
    fields = {
        "conversation_id": "c1", "direction": "inbound", "status": "received", "channel": "sms", "text": "hello",
        "effect": "not one of the words, but a text", "error": {"code": "device_offline", "message": f"not to {ANN}"},
        "metadata": {"note": "secret"}, "sender": ANN, "reactions": [{"handle": ANN}], "unknown": ANN,
        "attachments": [{"id": "a1", "filename": "ann.pdf", "mime_type": "application/pdf; name=ann.pdf",
                         "size_bytes": 3, "alt": "ann"}],
    }  # fmt: skip
    left = redactor(ANALYTICS).message(message(**fields))
    assert (left.text, left.sender_handle, left.effect) == ("·····", NAMES.handle(ANN), None)
    assert (left.direction, left.status, left.channel, left.conversation_id) == ("inbound", "received", "sms", "c1")
    assert bytes(left.error) == b'{"code":"device_offline"}'
    assert (bytes(left.metadata), bytes(left.extra)) == (b"null", b"")
    assert left.attachments
    (attachment,) = left.attachments
    assert (attachment.filename, attachment.mime_type, attachment.size_bytes) == (None, "application/pdf", 3)
    assert bytes(attachment.extra) == b""
    assert redactor(MINIMAL).message(message(**fields)).text is None
    whole = redactor(msgspec.structs.replace(FULL, text="drop")).message(message(**fields))
    assert (whole.text, whole.sender_handle, whole.effect) == (None, ANN, fields["effect"])
    assert json.loads(bytes(whole.extra)) == {"reactions": [{"handle": ANN}], "unknown": ANN}


@pytest.mark.parametrize(
    "fields",
    [
        {"from": {"handle": ANN, "name": "Ann"}},
        {"sender": ANN, "from": {"handle": "+14155550119", "name": "Ann"}},
        {"sender": {"name": "Ann", "handle": ANN}, "sender_handle": ANN},
        {"who": {"name": "Ann", "handle": ANN}},
    ],
)
def test_sender_in_any_field_is_redacted(fields: dict[str, Any]) -> None:
    raw = msgspec.Raw(json.dumps({"id": "m1", "unknown": 1} | fields).encode())
    policy = msgspec.structs.replace(ANALYTICS, extra="keep")
    for erased in (frozenset[str](), frozenset({NAMES.erased_handle(ANN)})):
        row, _ = read_row(Message, raw, "messages", None, sender_fields=("who", *SENDER_FIELDS))
        assert row is not None
        left = redactor(policy, erased=erased).message(row)
        assert (type(left) is ExcludedMessage) == bool(erased)
        if not erased:
            assert left.sender_handle == NAMES.handle(ANN)
            assert json.loads(bytes(left.extra)) == {"unknown": 1}
    stored, _ = read_row(Message, raw, "messages", None, sender_fields=("who", *SENDER_FIELDS))
    assert stored is not None
    assert (b"Ann" in bytes(Redactor().message(stored).extra)) == ("name" in json.dumps(fields)), (
        "who keeps all, keeps it"
    )


def test_own_numbers_stay_readable_if_configured() -> None:
    number = Number(handle=OURS, label="Ann's desk", channels=msgspec.Raw(b'["sms"]'))
    keeps, hides = redactor(ANALYTICS), redactor(MINIMAL)
    early = keeps.handle(OURS)
    keeps.add_own_numbers([OURS])
    assert keeps.handle(early) == keeps.handle(OURS) == keeps.handle("+1 415 555 0100") == OURS
    assert keeps.chat(Chat(id="c", from_handle=OURS, remote_handle=ANN)).from_handle == OURS
    assert keeps.number(number).handle == OURS
    assert number.label == NAMES.title("Ann's desk")
    hides.add_own_numbers([OURS])
    assert hides.number(Number(handle=OURS)).handle == hides.handle(OURS) == NAMES.handle(OURS)


def test_rejected_row_is_replaced_by_a_hash() -> None:
    rows = [RejectedRow("messages", "no usable id", f'{{"text": "{text}"}}', "req_1") for text in "aab"]
    left = [redactor(MINIMAL).rejected(one) for one in rows]
    assert [one.row[:2] for one in left] == ["r_"] * 3
    assert left[0] == left[1] != left[2]
    assert len({one.row_hash for one in left}) == 2
    assert [one.reason for one in left] == ["no usable id"] * 3
    assert Redactor().rejected(rows[0]) == rows[0]


def test_unknown_fields_of_a_payload_are_dropped() -> None:
    payload = {
        "id": "evt_1", "type": "message.received", "created_at": "2026-03-01T00:00:00Z", "note": "unknown",
        "handle": ANN, "timestamp": 12.5, "status": {"of": ANN}, "data": {"conversation_id": "c1", "secret": 1},
        "message": {"id": "m1", "text": "hello", "sender": ANN, "reaction": "love", "sent_at": "call Ann"},
    }  # fmt: skip
    assert redact_payload(redactor(MINIMAL), payload) == {
        "id": "evt_1", "type": "message.received", "created_at": "2026-03-01T00:00:00Z", "handle": NAMES.handle(ANN),
        "timestamp": 12.5, "data": {"conversation_id": "c1"}, "message": {"id": "m1", "sender": NAMES.handle(ANN)},
    }  # fmt: skip
    assert redact_payload(Redactor(), payload) == payload
    assert redact_payload(redactor(MINIMAL), [payload]) is None
    known = redact_payload(redactor(MINIMAL), payload)
    assert redact_payload(redactor(MINIMAL), known) == known


def test_texts_expire_and_dormant_chats_are_left_out() -> None:
    policy = msgspec.structs.replace(FULL, text_days=10, thread_days=20)
    one = redactor(policy, now=lambda: AT + timedelta(days=10, seconds=1))
    assert one.message(message(text="old")).text is None
    assert redactor(policy, now=lambda: AT + timedelta(days=10)).message(message(text="new")).text == "new"
    buffer = RowBuffer(("chats", "messages", "attachments"))
    asleep = redactor(policy, now=lambda: AT + timedelta(days=21))
    chats = [Chat(id="c1", last_message_at=AT), Chat(id="c2", last_message_at=AT + timedelta(days=2))]
    page: Page[Any] = Page(chats, [], False, False, AT, AT)
    buffer.add(asleep.page(page))
    buffer.add(asleep.page(replace(page, rows=[message(conversation_id="c1")])))
    assert [item.data.column("id").to_pylist() for item in buffer.flush()] == [["c2"]]


def test_source_takes_its_policy_from_configuration_or_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _configure_redactor(None).is_idle
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__TEXT", "drop")
    with pytest.raises(ConfigurationError, match="need a key"):
        _configure_redactor(None)
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", KEY)
    assert _configure_redactor(None).policy == msgspec.structs.replace(FULL, text="drop")
    given = _configure_redactor({"preset": "minimal", "key": KEY + "."})
    assert given.policy == MINIMAL
    assert given.handle(ANN) == Pseudonymizer(KEY + ".").handle(ANN)
    with pytest.raises(ConfigurationError, match="no setting txt"):
        _configure_redactor({"txt": "drop"})


@pytest.mark.parametrize("handle", [ANN, BEN])
def test_handle_is_one_person_in_every_spelling(handle: str) -> None:
    erased = redactor(FULL, erased=frozenset({NAMES.erased_handle(handle)}))
    for written in spellings(handle):
        assert NAMES.handle(written) == NAMES.handle(handle), written
        left = erased.replace_erased(f"ask {written} or +14155550199")
        assert handles_in(left, handle) == []
        assert left.startswith("ask ")
        assert left.endswith(" or +14155550199")
        nested = json.loads(erased.replace_erased_in_json(json.dumps({written: [{"of": written}]})))
        assert handles_in("\n".join(texts_in(nested)), handle) == []
    assert NAMES.handle(f"Ann <{handle}>") == NAMES.handle(handle)
    assert len({NAMES.handle(one) for one in (handle, f"group:{handle}", f"{handle} {BEN}", f"room {handle} 2")}) == 4
    others = ["+1415555011", "+141555501112", "+4155550111", "joben@example.com", "jo.ben@example.com", "1_2026-03-01"]
    assert [erased.replace_erased(one) for one in others] == others
