"""Run dbt commands in this process, on a project that is parsed once. Imports dbt, which takes seconds.

dbt takes longer to parse the project than to build a small account's marts. The result depends on the project's files,
on dbt, and on the names of target, database, schemas and time zone, but on nothing else in a warehouse, so that
warehouses share it: in `transforms/target/`, or in the user's cache if the package is installed. dbt's own cache
(`partial_parse`) works for one database file only.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.cli.main import dbtRunner, dbtRunnerResult
from dbt.contracts.graph.manifest import Manifest

from msgbubbles_sync.workspace import IS_CHECKOUT

from .project import PROJECT, compute_key

KEY_BYTES = 32


def run_dbt(
    command: Sequence[str],
    options: Sequence[str],
    manifest: Manifest | None,
    names: tuple[str, str, str, str],
    on_event: Callable[[Any], None],
) -> tuple[dbtRunnerResult, Manifest | None]:
    """Run a dbt command. Return its result, and the parsed project; null if the project cannot be parsed.

    `manifest` is the parsed project of an earlier command. `names` are those of `load_manifest`.
    """
    try:
        manifest = manifest or load_manifest(*names)
        if manifest is None:
            parsed = dbtRunner().invoke(["parse", *options])
            if not isinstance(parsed.result, Manifest):
                return parsed, None
            manifest = parsed.result
            store_manifest(manifest, *names)
        return dbtRunner(manifest=manifest, callbacks=[on_event]).invoke([*command, *options]), manifest
    finally:
        DuckDBConnectionManager.close_all_connections()


def load_manifest(target: str, database: str, time_zone: str, schemas: str) -> Manifest | None:
    """Load the manifest of the project as it is now; null if it has to be parsed."""
    try:
        content = _path(target, database, schemas).read_bytes()
        if content[:KEY_BYTES] != compute_key(target, database, time_zone, schemas):
            return None
        manifest = Manifest.from_msgpack(content[KEY_BYTES:])
    except Exception:  # whatever is wrong with the file, parsing replaces it
        return None
    manifest.build_parent_and_child_maps()
    return manifest


def store_manifest(manifest: Manifest, target: str, database: str, time_zone: str, schemas: str) -> None:
    """Store a manifest for all warehouses."""
    path = _path(target, database, schemas)
    with suppress(OSError):  # the next run parses again
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, new = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(compute_key(target, database, time_zone, schemas) + manifest.to_msgpack())
        Path(new).replace(path)


def _path(target: str, database: str, schemas: str) -> Path:
    # A database may have any name, so its hash is in the path.
    folder = PROJECT / "target" if IS_CHECKOUT else platformdirs.user_cache_path("msgbubbles") / "dbt"
    return folder / f"{target}-{schemas}{hashlib.sha256(database.encode()).hexdigest()[:16]}.msgpack"
