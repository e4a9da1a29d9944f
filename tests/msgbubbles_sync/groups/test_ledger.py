"""Which rows of the ledger the warehouse does not have yet."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from msgbubbles_sync.groups.ledger import Entry, Ledger, Observation, OperationResult
from msgbubbles_sync.groups.model import Operation

SEEN = Observation("north", "chat", "+14155550100", "North", ("+14155550111",), False, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path) as ledger:
        yield ledger


def begin(ledger: Ledger) -> Entry:
    operation = Operation("create", "north", ("+14155550111",), "North", "+14155550100", "Hello")
    return ledger.begin("plan", operation, None, None)


def list_not_loaded(ledger: Ledger) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    entries, observations = ledger.list_unloaded()
    return [(entry.operation_id, version) for entry, version in entries], [(seen.key, n) for seen, n in observations]


def test_row_is_loaded_again_only_after_a_change(ledger: Ledger) -> None:
    entry = begin(ledger)
    ledger.record_observation(SEEN)
    assert list_not_loaded(ledger) == ([(entry.operation_id, 1)], [("north", 1)])
    ledger.set_loaded(*ledger.list_unloaded())
    assert list_not_loaded(ledger) == ([], [])
    ledger.finish(entry, OperationResult("succeeded", "chat"))
    ledger.record_observation(SEEN)
    assert list_not_loaded(ledger) == ([(entry.operation_id, 2)], [("north", 2)])


def test_row_that_changes_during_its_load_is_loaded_again(ledger: Ledger) -> None:
    entry = begin(ledger)
    ledger.record_observation(SEEN)
    loading = ledger.list_unloaded()
    ledger.finish(entry, OperationResult("succeeded", "chat"))
    ledger.record_observation(SEEN)
    ledger.set_loaded(*loading)
    assert list_not_loaded(ledger) == ([(entry.operation_id, 2)], [("north", 2)])


def test_withdrawn_operation_stays_if_the_warehouse_has_it(ledger: Ledger) -> None:
    loaded, unsent = begin(ledger), begin(ledger)
    ledger.set_loaded([(loaded, 1)], [])
    for entry in (loaded, unsent):
        ledger.withdraw(entry)
    assert [entry.operation_id for entry in ledger.list_entries()] == [loaded.operation_id]


def test_restored_rows_need_no_load(ledger: Ledger, tmp_path: Path) -> None:
    begin(ledger)
    ledger.record_observation(SEEN)
    (tmp_path / "other").mkdir()
    with Ledger.open(tmp_path / "other") as restored:
        restored.restore(ledger.list_entries(), ledger.list_observations())
        assert restored.list_entries() == ledger.list_entries()
        assert list_not_loaded(restored) == ([], [])
