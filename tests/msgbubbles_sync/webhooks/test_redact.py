from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helpers.canary import spellings
from helpers.hooks import load_all, receiving, typing, workspace_in
from msgbubbles.policy import FULL, PRESETS, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles_sync.policy.applied import Record
from msgbubbles_sync.webhooks.events import parse_event
from msgbubbles_sync.webhooks.load import dead_letter_folder
from msgbubbles_sync.webhooks.redact import redact_delivery
from msgbubbles_sync.webhooks.spool import Delivery, spool_folder, take_finished

KEY = "of a test, and long enough to be a key"
NAMES = Pseudonymizer(KEY)
ANN, OURS = "+14155550123", "+14155550100"
AT = datetime(2026, 3, 1, tzinfo=UTC)


def delivery(**payload: Any) -> Delivery:
    return Delivery("evt_1", AT, json.dumps(payload))


@pytest.mark.parametrize(
    "payload",
    [
        {"handle": "+1 415 555 0123"},
        {"data": {"message": {"sender": ANN}}},
        {"message": {"id": "m1", "conversation_id": "theirs"}},
        {"conversation": {"id": "theirs"}},
        {"message": {"to": NAMES.handle(ANN)}},
        {"message": {"sender": {"handle": "tel:+1-415-555-0123"}}},
    ],
)
@pytest.mark.parametrize("policy", [FULL, PRESETS["minimal"]], ids=["full", "minimal"])
def test_event_about_an_erased_person_is_not_stored(payload: dict[str, Any], policy: Any) -> None:
    erased = frozenset({NAMES.erased_handle(ANN), NAMES.erased_chat("theirs")})
    assert redact_delivery(delivery(**payload), Redactor(policy, NAMES, erased)) is None
    assert redact_delivery(delivery(**payload), Redactor(policy, NAMES)) is not None


def test_mention_of_an_erased_person_is_removed() -> None:
    redactor = Redactor(FULL, NAMES, frozenset({NAMES.erased_handle(ANN)}))
    left = redact_delivery(
        delivery(message={"text": f"ask {ANN}", "number": 14155550123, "at": 1772323200000}), redactor
    )
    assert left is not None
    assert json.loads(left.body) == {"message": {"text": "ask [erased]", "number": "[erased]", "at": 1772323200000}}
    untouched = delivery(message={"text": "ask"})
    assert redact_delivery(untouched, redactor) is untouched


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("sender", {"handle": ANN, "seat": 4}, {"handle": NAMES.handle(ANN), "seat": 4}),
        ("to", [ANN, {"handle": ANN}], [NAMES.handle(ANN), {"handle": NAMES.handle(ANN)}]),
        ("text", {"plain": "a secret"}, None),
        ("reaction", ["a secret", 5], [None, None]),
    ],
)
def test_known_field_of_another_type_follows_the_policy(field: str, value: Any, stored: Any) -> None:
    policy = msgspec.structs.replace(PRESETS["minimal"], extra="keep")
    left = redact_delivery(delivery(message={"id": "m1", "note": 1, field: value}), Redactor(policy, NAMES))
    assert left is not None
    assert json.loads(left.body)["message"].get(field) == stored
    assert json.loads(left.body)["message"]["note"] == 1


@pytest.mark.parametrize("body", ["{", "+14155550123", "[" * 100_000])
@pytest.mark.parametrize(
    "redactor",
    [Redactor(PRESETS["minimal"], NAMES), Redactor(FULL, NAMES, frozenset({NAMES.erased_handle(ANN)}))],
    ids=["minimal", "erased"],
)
def test_invalid_body_is_stored_empty_under_a_policy(body: str, redactor: Redactor) -> None:
    left = redact_delivery(Delivery("msg_1", AT, body), redactor)
    assert left == Delivery("msg_1", AT, "")
    assert parse_event(left) is None
    assert redact_delivery(Delivery("msg_1", AT, body), Redactor()) == Delivery("msg_1", AT, body)


@pytest.mark.parametrize("policy", [FULL, PRESETS["minimal"]], ids=["full", "minimal"])
def test_no_value_or_name_has_an_erased_handle(policy: Any) -> None:
    redactor = Redactor(policy, NAMES, frozenset({NAMES.erased_handle(ANN)}))
    for written in spellings(ANN):
        quoted = dict.fromkeys(("type", "status", "direction", "effect", "reply_to", "note", written), written)
        sent = msgspec.structs.replace(
            delivery(**quoted, message={"id": f"m {written}", **quoted, "error": {"code": written}}),
            event_id=f"evt {written}",
        )
        left = redact_delivery(sent, redactor)
        assert left is not None
        event = parse_event(left)
        assert event is not None
        assert [one for one in spellings(ANN) if one in repr(event) + left.body] == []


@pytest.mark.parametrize("preset", ["analytics", "minimal"])
def test_values_that_are_not_text_survive_an_erasure(preset: str) -> None:
    redactor = Redactor(PRESETS[preset], NAMES, frozenset({NAMES.erased_handle(ANN)}))
    values = {"is_group": True, "size_bytes": 5, "created_at": 1772323200000}
    left = redact_delivery(delivery(type="conversation.created", **values), redactor)
    assert left is not None
    assert json.loads(left.body).items() >= values.items()


def test_dead_letter_never_names_an_erased_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", KEY)
    workspace = workspace_in(tmp_path)
    Record(FULL, NAMES.check, frozenset({NAMES.erased_handle(ANN)})).save(workspace)
    spool_folder(workspace).mkdir(parents=True)
    lines = [*(f'{{"of": "{one}"' for one in spellings(ANN)), '{"of": "\\u002b14155550123"', "of somebody else"]
    (spool_folder(workspace) / "1-1.jsonl").write_text("".join(f"{line}\n" for line in lines))
    load_all(workspace)
    (path,) = dead_letter_folder(workspace).glob("*.jsonl")
    assert path.read_text() == "of somebody else\n"


def test_own_number_received_as_a_pseudonym_is_loaded_readable() -> None:
    sent = delivery(type="message.received", message={"id": "m", "sender": OURS}, handle=ANN)
    received = redact_delivery(sent, Redactor(PRESETS["analytics"], NAMES))
    assert received is not None
    assert OURS not in received.body
    loads = Redactor(PRESETS["analytics"], NAMES)
    loads.add_own_numbers([OURS])
    left = redact_delivery(received, loads)
    event = None if left is None else parse_event(left)
    assert event is not None
    assert (event.message["sender"], event.handle) == (OURS, NAMES.handle(ANN))


def test_running_receiver_follows_the_current_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", KEY)
    workspace = workspace_in(tmp_path)
    with receiving(workspace) as served:
        assert served.post(typing(1)).status_code == 204
        Record(FULL, NAMES.check, frozenset({NAMES.erased_handle(ANN)})).save(workspace)
        # The events of a list that are about other people stay.
        listed = f'[{typing(2).decode()}, {{"type": "conversation.typing", "conversation_id": "c2"}}]'.encode()
        assert served.post(listed, delivery_id="msg_2").status_code == 204
        assert (served.count("erased"), served.count("stored")) == (1, 2)
        monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "minimal")
        Record(PRESETS["minimal"], NAMES.check).save(workspace)
        assert served.post(typing(3), delivery_id="msg_3").status_code == 204
        # Nothing is accepted if the configured policy is not that of the warehouse.
        Record(PRESETS["analytics"], NAMES.check).save(workspace)
        assert served.post(typing(4), delivery_id="msg_4").status_code == 503
    bodies = [one.body for segment in take_finished(spool_folder(workspace)) for one in segment.deliveries]
    assert [ANN in body for body in bodies] == [True, False, False]
    assert NAMES.handle(ANN) in bodies[2]
