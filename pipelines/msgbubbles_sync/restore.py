"""Restore damaged files of the job from the destination, and remove files that are no longer needed.

The caller holds the warehouse's lock.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import semver

from msgbubbles.lazy_pyarrow import pa, pq
from msgbubbles.source.lazy_dlt import common_exceptions, dlt_json, dlt_schema, state_sync
from msgbubbles_sync.dbt.runner import forget_build
from msgbubbles_sync.destinations.parquet_files import ParquetFiles
from msgbubbles_sync.destinations.publish import is_damaged, read_mark
from msgbubbles_sync.policy import applied as privacy

from .destinations import Destination
from .destinations.duckdb_file import DuckDBFile
from .destinations.ducklake import DuckLake
from .errors import UsageError
from .files import move_damaged, read_json, remove, write_privately
from .workspace import Workspace

# The marks of the work database and of dlt's files after the last run.
WORK_MARK, DLT_MARKS = "work.json", "dlt.json"
# Files of the workspace. A folder with one of these names would keep every run from finishing.
FILES = ("version", "runs.jsonl", "published.json", WORK_MARK, DLT_MARKS, "loaded_with", "schemas.json", "compacted",
         "whole_until", "last_error.txt", "dbt/built_with", "dbt/data_tests.json", "dbt/build",
         "dbt/plan.json")  # fmt: skip
# Errors that reading a damaged file raises.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error, gzip.BadGzipFile,
          IsADirectoryError, NotADirectoryError)  # fmt: skip
CHUNK_BYTES = 1024 * 1024


def restore(destination: Destination, say: Callable[[str], None]) -> None:
    """Rename damaged files, and restore them if that takes no request. Calls `say` for each.

    Raises `OSError`, and `duckdb.Error` if the database cannot be opened for another reason than damage.
    """
    workspace = destination.workspace
    for path in (*(workspace.folder / name for name in FILES), *workspace.folder.glob("*.pending")):
        if path.is_dir():
            say(f"{path} was a folder: moved to {move_damaged(path).name}")
        elif path.suffix != ".pending" and path.exists() and not os.access(path, os.R_OK | os.W_OK):
            say(f"{path} could not be read or written: moved to {move_damaged(path).name}")
    if isinstance(destination, DuckDBFile):
        _restore_database(destination, say)
    if isinstance(destination, ParquetFiles):
        with suppress(UsageError):  # `prepare` raises it again
            for moved_file in destination.move_damaged_files():
                say(f"{moved_file} was damaged: everything is read again")
            if moved := destination.move_delta_tables():
                say(moved)
    if isinstance(destination, DuckLake) and workspace.is_pending("lost_files"):
        if lost := destination.empty_lost_tables():
            say(f"files of {', '.join(lost)} are missing: emptied; everything is read again")
        workspace.set_done("lost_files")
    if (workspace.folder / privacy.FILE).exists() and (restored := privacy.restore_record(destination)):
        say(restored)
    if read_json(workspace.folder / DLT_MARKS) == _read_dlt_marks(workspace):
        return
    for folder in sorted(workspace.dlt_folder.iterdir()):
        if ".damaged-" not in folder.name and _is_damaged_pipeline(folder):
            say(f"{folder} was damaged: moved to {move_damaged(folder).name}, and restored from the warehouse")


def tidy(workspace: Workspace) -> None:
    """Remove what dlt keeps of finished loads, and record the marks of its files and of the work database.

    The next run checks for damage what has another mark.
    """
    # A trace quotes errors, and settings such as the id of a bucket's key.
    for path in (*workspace.dlt_folder.glob("*/load/loaded/*"), *workspace.dlt_folder.glob("*/trace.pickle")):
        remove(path)
    record_dlt_marks(workspace)
    if workspace.destination == "duckdb":
        write_privately(workspace.folder / WORK_MARK, json.dumps(read_mark(workspace.work)))


def record_dlt_marks(workspace: Workspace) -> None:
    """Record the marks of dlt's files, which it takes dlt to check."""
    write_privately(workspace.folder / DLT_MARKS, json.dumps(_read_dlt_marks(workspace)))


def _read_dlt_marks(workspace: Workspace) -> dict[str, Any]:
    folder = workspace.dlt_folder
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and os.access(path, os.R_OK)]
    return {str(path.relative_to(folder)): read_mark(path) for path in files}


def _restore_database(destination: DuckDBFile, say: Callable[[str], None]) -> None:
    workspace = destination.workspace
    work, log = workspace.work, workspace.work.with_name(f"{workspace.work.name}.wal")
    is_unchanged = read_json(workspace.folder / WORK_MARK) == read_mark(work) and not log.exists()
    if not work.exists() or is_unchanged or not is_damaged(work, destination.options()):
        return
    for path in (work, log):
        if path.exists():
            moved = move_damaged(path)
    forget_build(workspace)
    workspace.set_pending("transform", "publish")
    destination.prepare()
    source = "the published file" if work.exists() else "the API, from the beginning"
    say(f"{work} was damaged: restored from {source}; the damaged file is now {moved.name}")


def _is_damaged_pipeline(folder: Path) -> bool:
    try:
        _read_pipeline(folder)
    except (*DAMAGE, common_exceptions.DltException, pa.ArrowException):
        return True
    except OSError as error:
        if error.errno in (None, errno.EACCES, errno.EPERM):  # Arrow's has none; another user's file can be replaced
            return True
        raise
    return False


def _read_pipeline(folder: Path) -> None:
    """Read what dlt reads in a pipeline's folder, and its pending packages."""
    state_file = folder / "state.json"
    if not folder.is_dir():
        raise NotADirectoryError(folder.name)
    if not state_file.exists():
        return  # dlt starts from scratch
    state = state_sync.migrate_state_to_current(
        folder.name, dlt_json.json.loads(state_file.read_text(encoding="utf-8"))
    )
    for name in state["schema_names"] or ():
        schema = folder / "schemas" / f"{name}.schema.json"
        if not schema.exists():
            raise ValueError(schema.name)
        dlt_schema.Schema.from_dict(dlt_json.json.loads(schema.read_text(encoding="utf-8")))
    for part in ("load", "normalize"):
        if (folder / part / ".version").exists():
            semver.Version.parse((folder / part / ".version").read_text(encoding="utf-8"))
    for path in (path for part in ("normalize/extracted", "load/normalized") for path in (folder / part).rglob("*.*")):
        if path.suffix == ".json":
            dlt_json.json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet":
            for _ in pq.ParquetFile(path).iter_batches():
                pass
        elif path.suffix == ".gz":
            with gzip.open(path) as packed:
                while packed.read(CHUNK_BYTES):
                    pass
