"""Tests of the manifest cache: all warehouses share it, and a changed project invalidates it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.context import build_destination
from msgbubbles_sync.dbt import process as manifest
from msgbubbles_sync.dbt import project as files
from msgbubbles_sync.dbt import runner as transform
from msgbubbles_sync.dbt.project import Names
from msgbubbles_sync.settings import Settings, TransformSettings
from msgbubbles_sync.workspace import Workspace

COMPILE_ONE = ("compile", "--select", "stg_numbers")
NAMES = Names("duckdb", "memory", "")


@pytest.fixture(scope="module")
def parsed_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the dbt project, and parse it unless it has been parsed."""
    folder = tmp_path_factory.mktemp("parsed")
    copy = folder / "transforms"
    shutil.copytree(files.PROJECT, copy, ignore=shutil.ignore_patterns(*files.MADE_BY_DBT))
    cached = manifest._get_path(NAMES, None)
    if cached.exists():
        (copy / "target").mkdir()
        shutil.copy(cached, copy / "target")
    with pytest.MonkeyPatch.context() as patch:
        _use(copy, patch)
        _parse(folder / "one")
    return copy


@pytest.fixture
def project(parsed_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(parsed_project, tmp_path / "transforms")
    _use(copy, monkeypatch)
    return copy


def _use(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifest, files, transform):
        monkeypatch.setattr(module, "PROJECT", project)
    monkeypatch.setenv("MSGBUBBLES_DUCKDB_PATH", "")  # compiling sets it, and other tests need their own value


def _parse(folder: Path) -> None:
    """Compile a model of the project, which is parsed first if it has to be."""
    environment = {"MSGBUBBLES_DUCKDB_PATH": ":memory:"}
    result = transform._Dbt(build_destination(_workspace(folder)), Settings(), "duckdb", environment).run(*COMPILE_ONE)
    assert not result.failed


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
    assert manifest.load_manifest(NAMES) is not None
    assert manifest.load_manifest(Names("postgres", "memory", "")) is None

    parsed: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "store_manifest", lambda *names: parsed.append(names))
        _parse(tmp_path / "two")
    assert not parsed, "another warehouse parses nothing"

    model = project / "models" / "marts" / "contact.sql"
    changes: dict[Path, Callable[[Path], object]] = {
        model: _append("\n-- changed\n"),
        project / "macros" / "dialects.sql": _append("\n{# changed #}\n"),
        project / "models" / "staging" / "new.sql": lambda path: path.write_text("select 1 as one"),
        project / "models" / "marts" / "_marts.yml": lambda path: path.rename(path.with_name("_other.yml")),
        project / "tests" / "new.sql": lambda path: path.write_text("select 1 as one where false"),
    }
    for path, change in changes.items():
        cached = manifest.load_manifest(NAMES)
        assert cached is not None
        change(path)
        assert manifest.load_manifest(NAMES) is None, path.name
        manifest.store_manifest(cached, NAMES)


def test_unusable_manifest_is_replaced_by_one_that_equals_it_with_other_names(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names("duckdb", "a", "north_")
    [renamed, back] = [manifest.load_manifest(given) for given in (names, NAMES)]
    [cached] = (project / "target").iterdir()
    for damage in (b"", cached.read_bytes()[: manifest.KEY_BYTES] + b"no msgpack"):
        cached.write_bytes(damage)
        assert manifest.load_manifest(NAMES) is None
    store = manifest.store_manifest
    stored: list[Any] = []

    def record(parsed: Any, *how: Any) -> None:
        stored.append((_contents(parsed), how[0]))  # as it is then: dbt adds the compiled code to it
        store(parsed, *how)

    monkeypatch.setattr(manifest, "store_manifest", record)
    workspace = Workspace.from_path(_workspace(tmp_path / "two").folder / ".a.staging.duckdb")
    workspace.make_folders()
    zone = Settings(transforms=TransformSettings(time_zone="Asia/Kolkata"))
    destination = build_destination(workspace)
    destination.prefix = "north_"
    transform._Dbt(destination, zone, *destination.read_dbt_target()).run(*COMPILE_ONE)
    [(parsed, parsed_with)] = stored
    assert parsed_with == names
    assert _contents(renamed) == parsed != _contents(back)
    assert _contents(manifest.load_manifest(names)) == parsed


def _contents(found: Any) -> dict[str, Any]:
    kinds = (found.nodes, found.sources, found.unit_tests, found.exposures, found.macros)
    nodes = {key: node.to_dict() for kind in kinds for key, node in kind.items()}
    return {key: {name: value for name, value in node.items() if name != "created_at"} for key, node in nodes.items()}
