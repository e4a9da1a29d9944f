"""Provide a workspace whose tables are in a destination, with old versions of their rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import postgres, s3
from helpers.context import build_destination
from helpers.lake import lake_at, lake_in_bucket
from helpers.two_versions import KEY, load
from msgbubbles_sync.workspace import Workspace


@dataclass
class Copies:
    """Folders and databases that are loaded, for tests to copy: loading takes most of the time of a test."""

    folder: Path
    server: str
    databases: ExitStack


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[Copies]:
    with ExitStack() as databases:
        yield Copies(tmp_path_factory.mktemp("destinations"), postgres_server, databases)


@pytest.fixture(params=["postgres", "ducklake", "filesystem"])
def workspace(
    request: pytest.FixtureRequest, worker_id: str, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workspace]:
    """Load account north twice, with other texts, so that there are old versions of rows."""
    # Always in this folder, and in a database of this name: the files of a lake and of dlt name them.
    folder, copied = copies.folder / request.param, copies.folder / f"{request.param}-loaded"
    template = f"{request.param}_{worker_id}"
    with ExitStack() as stack:
        options = f'TEMPLATE "{template}"' if copied.exists() else ""
        address = stack.enter_context(postgres.new_database(copies.server, f"warehouse_{worker_id}", options))
        variables = {"DESTINATION__POSTGRES__CREDENTIALS": address, "SOURCES__MSGBUBBLES__PRIVACY__KEY": KEY}
        variables["DESTINATION__FILESYSTEM__BUCKET_URL"] = str(folder / "lake")
        if request.param not in ("duckdb", "filesystem"):  # and in schemas of other names
            variables |= {
                "SYNC__RAW_SCHEMA": "crm",
                "SYNC__STAGING_SCHEMA": "crm_work",
                "SYNC__MARTS_SCHEMA": "analytics",
            }
        if copied.exists():
            shutil.rmtree(folder)
            shutil.copytree(copied, folder, symlinks=True)
        folder.mkdir(exist_ok=True)
        if request.param == "bucket":
            (folder / "buckets" / "lake").mkdir(parents=True, exist_ok=True)
            port = stack.enter_context(s3.running(folder / "buckets"))
            variables |= lake_in_bucket(address, "lake", port)
        else:
            variables |= lake_at(address, folder / "lake")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        destination = "ducklake" if request.param == "bucket" else request.param
        workspace = Workspace.from_path(folder / "company.duckdb", destination, "north")
        workspace.make_folders()
        workspace.configure_dlt()
        if not copied.exists():
            build_destination(workspace).prepare()
            for version in ("before", "now"):
                load(workspace, version)
            build_destination(workspace).publish()
            copies.databases.enter_context(postgres.copied_database(copies.server, f"warehouse_{worker_id}", template))
            shutil.copytree(folder, copied, symlinks=True)
        yield workspace
