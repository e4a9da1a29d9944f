"""Tests of the manifest cache: all warehouses of a name share it, and a changed project invalidates it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msgbubbles_sync.dbt import process as manifest
from msgbubbles_sync.dbt import project as files
from msgbubbles_sync.dbt import runner as transform
from msgbubbles_sync.dbt.runner import compile_models
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.workspace import Workspace

NAMES = ("duckdb", ":memory:", "UTC", "")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the dbt project and parse it."""
    copy = tmp_path / "transforms"
    shutil.copytree(files.PROJECT, copy, ignore=shutil.ignore_patterns(*files.MADE_BY_DBT))
    for module in (manifest, files, transform):
        monkeypatch.setattr(module, "PROJECT", copy)
    monkeypatch.setenv("MSGBUBBLES_DUCKDB_PATH", "")  # compiling sets it, and other tests need their own value
    compile_models(_workspace(tmp_path / "one"), "", Settings())
    return copy


def _workspace(folder: Path) -> Workspace:
    folder.mkdir()
    workspace = Workspace.from_path(folder / "company.duckdb")
    workspace.make_folders()
    return workspace


def _append(text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(path.read_text() + text)

    return change


def test_project_is_parsed_once_and_again_after_a_change(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert manifest.load_manifest(*NAMES) is not None
    assert manifest.load_manifest("duckdb", ":memory:", "Asia/Kolkata", "") is None
    assert manifest.load_manifest("duckdb", "company", "UTC", "") is None
    assert manifest.load_manifest("duckdb", ":memory:", "UTC", "north_") is None

    parsed: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "store_manifest", lambda *names: parsed.append(names))
        compile_models(_workspace(tmp_path / "two"), "", Settings())
    assert not parsed, "another warehouse of this name parses nothing"

    model = project / "models" / "marts" / "contact.sql"
    changes: dict[Path, Callable[[Path], object]] = {
        model: _append("\n-- changed\n"),
        project / "macros" / "dialects.sql": _append("\n{# changed #}\n"),
        project / "models" / "staging" / "new.sql": lambda path: path.write_text("select 1 as one"),
        project / "models" / "marts" / "_marts.yml": lambda path: path.rename(path.with_name("_other.yml")),
        project / "tests" / "new.sql": lambda path: path.write_text("select 1 as one where false"),
    }
    for path, change in changes.items():
        cached = manifest.load_manifest(*NAMES)
        assert cached is not None
        change(path)
        assert manifest.load_manifest(*NAMES) is None, path.name
        manifest.store_manifest(cached, *NAMES)


def test_unusable_cache_file_is_replaced(project: Path, tmp_path: Path) -> None:
    [cached] = (project / "target").iterdir()
    for damage in (b"", cached.read_bytes()[: manifest.KEY_BYTES] + b"no msgpack"):
        cached.write_bytes(damage)
        assert manifest.load_manifest(*NAMES) is None
    compile_models(_workspace(tmp_path / "two"), "", Settings())
    assert manifest.load_manifest(*NAMES) is not None
