"""Runs the dbt project in this process. dbt takes seconds to import, so nothing here is imported before it is used."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from .destinations import destination_of
from .place import ROOT, Place

PROJECT = ROOT / "transforms"


class TransformError(Exception):
    """The marts could not be built. The message names the models, and the file with what the database said: that
    may quote rows, so it is in no message."""


def is_outdated(place: Place) -> bool:
    """Whether the models are not those that the marts were last built with."""
    built_with = _built_with(place)
    return not built_with.exists() or built_with.read_text() != _models_digest()


def transform(place: Place) -> None:
    """Bring the marts of the work database up to date; from scratch when the models have changed, because a new
    model does not correct what an old one has built. Raises `TransformError`."""
    options = ["--full-refresh"] if is_outdated(place) else []
    digest = _models_digest()
    _run_dbt(place, ["run", *options], *destination_of(place).dbt())
    _built_with(place).write_text(digest)


def compile_models(place: Place) -> None:
    """See that the dbt project can be run at all, without a database. Raises `TransformError`."""
    _run_dbt(place, ["compile"], "duckdb", {"MSGBUBBLES_DUCKDB_PATH": ":memory:"})


def _run_dbt(place: Place, command: list[str], target: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import dbtRunner

    folder = place.folder / "dbt"
    try:
        answer = dbtRunner().invoke(
            [
                *(*command, "--target", target),
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


def _built_with(place: Place) -> Path:
    return place.folder / "dbt" / "built_with"


def _models_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(PROJECT.rglob("*")):
        if path.suffix in (".sql", ".yml"):
            digest.update(path.relative_to(PROJECT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _names(failed: list[object]) -> str:
    return ", ".join(node.node.name for node in failed) or "dbt did not start"  # type: ignore[attr-defined]


def _written(folder: Path, said: str) -> Path:
    path = folder / "last_error.txt"
    with suppress(OSError):  # where the disk is full, or is not ours; the run says that too
        path.touch(mode=0o600)
        path.write_text(said + "\n")
    return path
