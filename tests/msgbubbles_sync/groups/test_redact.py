"""Groups under a privacy policy: the account has the real values, the files do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.canary import PRIVACY_KEY, find_words
from helpers.group_world import World, cut_next_write, outcomes, row
from msgbubbles.policy import FULL, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.ledger import Ledger
from msgbubbles_sync.groups.redact import GroupRedactor, redact_row
from msgbubbles_sync.groups.result import UNKNOWN_PERSON
from msgbubbles_sync.groups.view import fetch_view
from msgbubbles_sync.policy.vault import Vault
from msgbubbles_sync.tables import GROUP_OPERATIONS

ANNA, BEN, CARLA, DORA = "+14155550111", "ben@example.com", "+14155550113", "dora@example.com"
WORDS = [one.removeprefix("+") for one in (ANNA, BEN, CARLA, DORA)]
PSEUDONYMS = Pseudonymizer(PRIVACY_KEY)
SETTING = "SOURCES__MSGBUBBLES__PRIVACY__"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{SETTING}KEY", PRIVACY_KEY)


@pytest.fixture
def analytics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{SETTING}PRESET", "analytics")


def group_of(world: World) -> dict[str, Any]:
    (group,) = [chat for chat in world.server.truth().chats if chat["is_group"]]
    return group | {"people": world.server.account.participants(group["id"])}


def files_are_clean(world: World, *also: str) -> bool:
    return find_words(world.workspace.database.parent, [*WORDS, *also]) == {}


@pytest.mark.parametrize(("preset", "renames"), [("analytics", 1), ("minimal", 0)])
def test_group_follows_its_row_without_handles_in_files(
    world: World, monkeypatch: pytest.MonkeyPatch, preset: str, renames: int
) -> None:
    monkeypatch.setenv(f"{SETTING}PRESET", preset)
    assert outcomes(world.apply(row("a", ANNA, BEN, title="Word one", message="Word two"))) == {
        ("create", "succeeded"): 1
    }
    group = group_of(world)
    assert (group["title"], group["people"]) == ("Word one", [ANNA, BEN])
    assert [message["text"] for message in world.server.truth().messages] == ["Word two"]
    wanted = row("a", BEN, CARLA, title="Word three", message="Word two")
    counts = outcomes(world.apply(wanted))
    assert counts[("add", "succeeded")] == counts[("remove", "succeeded")] == 1, "the API showed who is to leave"
    assert counts.get(("rename", "succeeded"), 0) == renames, "what is dropped cannot be compared"
    assert group_of(world)["people"] == [CARLA, BEN]
    assert group_of(world)["title"] == ("Word three" if renames else "Word one")
    assert outcomes(world.apply(wanted)) == {}
    assert world.observed("a").members == {PSEUDONYMS.handle(one) for one in (BEN, CARLA)}
    world.server.knobs.unreachable = {DORA}
    refused = world.apply(row("a", BEN, CARLA, DORA, title="Word three"))
    assert outcomes(refused) == {("add", "failed"): 1}
    assert files_are_clean(world, "Word "), "the API's own words neither"


@pytest.mark.usefixtures("analytics")
def test_removal_needs_a_known_handle(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world.server.knobs.participants_on_detail = False
    world.apply(row("a", ANNA, BEN, CARLA))
    applied = world.apply(row("a", BEN, CARLA))
    assert outcomes(applied) == {("remove", "failed"): 1}
    assert [one.why for one in applied.failures] == [UNKNOWN_PERSON]
    assert files_are_clean(world)
    monkeypatch.setenv(f"{SETTING}VAULT", str(tmp_path / "elsewhere" / "vault.sqlite"))
    world.apply(row("b", ANNA, DORA))
    assert outcomes(world.apply(row("a", BEN, CARLA))) == {("remove", "succeeded"): 1}
    assert world.observed("a").members == {PSEUDONYMS.handle(one) for one in (BEN, CARLA)}
    assert find_words(world.workspace.folder, WORDS) == {}


@pytest.mark.usefixtures("analytics")
@pytest.mark.parametrize("changed", [row("a", ANNA, CARLA), row("a", ANNA, BEN, message="Other"), row("b", ANNA, BEN)])
def test_redacted_creation_waits_for_its_row_and_is_not_repeated(world: World, changed: dict[str, object]) -> None:
    world.max_attempts = 1
    cut_next_write(world)
    assert outcomes(world.apply(row("a", ANNA, BEN))) == {("create", "unknown"): 1}
    applied = world.apply(changed)
    assert [one.why.split(":")[0] for one in applied.failures] == [
        "outcome unknown, and its row in the table has changed"
    ]
    assert outcomes(applied) == ({("create", "succeeded"): 1} if changed["key"] == "b" else {})
    applied = world.apply(row("a", ANNA, BEN))
    assert applied.resolved == 1
    assert applied.failures == []
    assert [done.operation for done in world.server.operations].count("create") == (2 if changed["key"] == "b" else 1)
    assert outcomes(world.apply(row("a", ANNA, CARLA))) == {("add", "succeeded"): 1, ("remove", "succeeded"): 1}


@pytest.mark.usefixtures("analytics")
def test_redacted_change_without_an_answer_is_found_done(world: World) -> None:
    world.apply(row("a", ANNA, BEN))
    for wanted in (row("a", ANNA, BEN, title="New"), row("a", ANNA, BEN, CARLA), row("a", BEN, CARLA)):
        world.max_attempts = 1
        cut_next_write(world)
        assert [outcome for _, outcome in world.apply(wanted).counts] == ["unknown"]
        applied = world.apply(wanted)
        assert (applied.resolved, outcomes(applied)) == (1, {})


@pytest.mark.usefixtures("analytics")
def test_other_spellings_are_recognized_by_pseudonym(world: World) -> None:
    shown = {"+541123456789": "+5491123456789", "Caf&": "Caf&amp;", DORA: "+14155550999"}

    def changed(_path: str, body: bytes) -> bytes:
        for asked, answer in shown.items():
            body = body.replace(f'"{asked}"'.encode(), f'"{answer}"'.encode())
        return body

    world.server.knobs.transform_body = changed
    wanted = row("a", ANNA, "+541123456789", DORA, title="Caf&")
    world.apply(wanted)
    with world.client() as client:
        client = GroupRedactor(world.context().redactor).wrap_client(client)
        with Ledger.open(world.workspace.folder) as ledger:
            fetch_view(ledger, client, "a", str(world.observed("a").chat_id))
    assert outcomes(world.apply(wanted)) == {}
    assert files_are_clean(world, "Caf", "1123456789", "4155550999")


def test_number_erased_by_an_earlier_version_stays_erased() -> None:
    # From the time when each national spelling had its own pseudonym.
    former = "p_" + PSEUDONYMS._hash("p", "+5491123456789")
    erased = frozenset({PSEUDONYMS._hash("erased handle", former)})
    assert PSEUDONYMS.was_erased("+54 9 11 2345-6789", erased)
    assert not PSEUDONYMS.was_erased("+5491123456780", erased)
    assert PSEUDONYMS.was_erased("+541123456789", frozenset({PSEUDONYMS.erased_handle("+5491123456789")}))


@pytest.mark.usefixtures("analytics")
def test_table_of_pseudonyms_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match="address 1 is a pseudonym; use the number itself, from a table of your own"):
        world.apply(row("a", PSEUDONYMS.handle(ANNA), BEN))


def test_erased_person_in_a_table_is_refused(world: World) -> None:
    from msgbubbles_sync.policy.applied import Record

    Record(key_check=PSEUDONYMS.check, erased=frozenset({PSEUDONYMS.erased_handle(ANNA)})).save(world.workspace)
    of_anna = [row("a", ANNA, BEN), row("a", BEN, CARLA, title=f"Without {ANNA}"), row("a", BEN, CARLA, message=ANNA)]
    for wanted in of_anna:
        with pytest.raises(
            UsageError, match=r"1 of the groups in the desired table have people who were erased .*Remove these people"
        ):
            world.apply(wanted, row("b", BEN, CARLA))
    assert world.server.operations == []
    assert find_words(world.workspace.folder, WORDS) == {}


def test_erased_handle_in_a_key_is_not_recorded_again(world: World) -> None:
    from msgbubbles_sync.policy.applied import Record

    wanted = row(f"friends of {ANNA}", BEN, CARLA)
    world.apply(wanted)
    erased = frozenset({PSEUDONYMS.erased_handle(ANNA)})
    Record(key_check=PSEUDONYMS.check, erased=erased).save(world.workspace)
    redactor = Redactor(FULL, PSEUDONYMS, erased)
    with Ledger.open(world.workspace.folder) as ledger:
        ledger.remove_people(redactor.is_erased, redactor.replace_erased)
    assert find_words(world.workspace.folder, [ANNA.removeprefix("+")]) == {}
    assert outcomes(world.apply(wanted)) == {}
    assert len([chat for chat in world.server.truth().chats if chat["is_group"]]) == 1
    entry = replace(world.list_entries()[0], error_message=f"cannot reach {ANNA}", error_code=ANNA, title=f"of {ANNA}")
    redacted = redact_row(redactor, GROUP_OPERATIONS, entry)
    assert redacted is not None
    assert (redacted.key, redacted.title) == ("friends of [erased]", "of [erased]")
    assert (redacted.error_code, redacted.error_message) == ("[erased]", "cannot reach [erased]")
    assert GroupRedactor(redactor).redact_message(f"cannot reach tel:{ANNA}") == "cannot reach tel:[erased]"
    assert find_words(world.workspace.folder, [ANNA.removeprefix("+")]) == {}


def test_vault_stores_and_removes_handles(tmp_path: Path) -> None:
    path = tmp_path / "new" / "vault.sqlite"
    vault = Vault(path)
    assert [one.stat().st_mode & 0o777 for one in (path, path.parent)] == [0o600, 0o700]
    for handle in ("+1 415 555 0111", "Ben@Example.com"):
        vault.add(PSEUDONYMS.handle(handle), handle)
    assert Vault(path).find_handle(PSEUDONYMS.handle(ANNA)) is None, "not yet"
    vault.save()
    other = Vault(path)
    assert [other.find_handle(PSEUDONYMS.handle(one)) for one in (ANNA, BEN)] == [ANNA, BEN]
    assert other.remove(lambda one: one == PSEUDONYMS.handle(ANNA)) == 1
    assert other.find_handle(PSEUDONYMS.handle(ANNA)) is None
    assert find_words(tmp_path, WORDS).keys() == {BEN}
    path.write_bytes(b"no database")
    with pytest.raises(UsageError, match=r"the vault cannot be used \(DatabaseError\)\. Give the user"):
        Vault(path)
