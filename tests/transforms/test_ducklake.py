"""Tests that the models build the same rows in a lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.lake import lake_at
from helpers.marts_engines import FULL_ACCOUNT, Lake, build_account, check_full_build, check_increments
from helpers.sizes import nightly
from msgbubbles_sync.workspace import Workspace


@nightly  # by day, e2e/test_ducklake.py compares the marts of an account with the reference
@pytest.mark.parametrize("seed", range(FULL_ACCOUNT, FULL_ACCOUNT + 5))
def test_marts_in_a_lake_equal_the_reference(
    seed: int, warehouse: Any, postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in lake_at(postgres_address, tmp_path / "lake").items():
        monkeypatch.setenv(name, value)
    lake = Lake(Workspace.from_path(tmp_path / "company.duckdb", "ducklake"), warehouse)
    account = build_account(seed)
    check_increments(lake, account, (20, 2))
    check_full_build(lake, account)
