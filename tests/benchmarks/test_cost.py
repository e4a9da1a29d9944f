"""Tests of the benchmarks on small accounts: requests, memory and lost rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import compare
import goals
from helpers.process import run_process
from helpers.sizes import pick_size
from measure import Usage, fresh_folder, pages


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the job where nothing of its process is measured."""

    def run(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> Usage:
        done = run_process(
            [str(word) for word in command], cwd=folder, env=os.environ | environment, capture_output=True, check=True
        )
        return Usage(0, 0, 0, done.stdout)

    for module in (goals, compare):
        monkeypatch.setattr(module, "used", run)


@pytest.mark.usefixtures("_forked")
def test_requests_stay_within_the_goals() -> None:
    figures = goals.requests()
    assert figures["first"] - 1 <= figures["first_at_least"] * 1.02, "plus one request for the numbers"
    assert figures["quiet"] <= 3
    assert figures["changed"] <= 9, "100 changed chats with 300 new messages"


def test_memory_does_not_grow_with_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNC__BATCH_PAGES", "100")
    counts, peaks = [], []
    more = pick_size(45_000, nightly=100_000)
    with pages(500, more + 20_000) as server:
        for since in ("2026-10-05", "2020-01-01"):
            folder, options = fresh_folder("growing"), ("--no-transform", "--since", since)
            record, usage = goals.run(folder, server.url, server.key, *options, memory_limit="128MB")
            counts.append(record["streams"]["messages"]["landed"])  # codespell:ignore landed
            peaks.append(usage.peak_bytes)
    assert counts[1] - counts[0] >= more
    # Fewer messages of a kilobyte would be within the noise of an allocator, which is 40 MB.
    assert peaks[1] - peaks[0] < 60_000_000


@pytest.mark.usefixtures("_forked")
@pytest.mark.parametrize(("name", "loses"), [("ours", False), ("floor", True)])
def test_changing_account_is_complete_where_plain_paging_loses_rows(
    name: str, loses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("changing.CHATS", 600)
    monkeypatch.setattr("changing.MESSAGES", 6000)
    figures = compare.measure_losses(name, compare.CONTESTANTS[name], compare.Figures(*[0] * 11))
    assert ((figures.lost, figures.lost_for_good) != (0, 0)) is loses
