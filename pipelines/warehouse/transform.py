"""Runs the dbt project in this process. dbt takes seconds to import, so nothing here is imported before it is used."""

from __future__ import annotations

import os
from pathlib import Path

from .place import ROOT, Place

PROJECT = ROOT / "transforms"


class TransformError(Exception):
    """The marts could not be built. The message names the models, and the file with what the database said: that
    may quote rows, so it is in no message."""


def transform(place: Place, *options: str) -> None:
    """Bring the marts of the work database up to date. Raises `TransformError`."""
    os.environ["MSGBUBBLES_DUCKDB_PATH"] = str(place.work)
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import dbtRunner

    folder = place.folder / "dbt"
    try:
        answer = dbtRunner().invoke(
            [
                "run",
                *options,
                *("--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)),
                *("--target-path", str(folder / "target"), "--log-path", str(folder / "logs")),
                *("--quiet", "--log-level", "none", "--log-level-file", "none", "--no-write-json"),
            ]
        )
    finally:
        DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]
    if answer.success:
        return
    failed = [node for node in getattr(answer.result, "results", ()) if node.status in ("error", "fail")]
    said = "\n\n".join(f"{node.node.name}: {node.message}" for node in failed) or str(answer.exception)
    raise TransformError(f"the marts could not be built ({_names(failed)}); see {_written(folder, said)}")


def _names(failed: list[object]) -> str:
    return ", ".join(node.node.name for node in failed) or "dbt did not start"  # type: ignore[attr-defined]


def _written(folder: Path, said: str) -> Path:
    path = folder / "last_error.txt"
    path.touch(mode=0o600)
    path.write_text(said + "\n")
    return path
