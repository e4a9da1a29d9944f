"""Run dbt commands in this process, on a project that is parsed once. Imports dbt, which takes seconds.

dbt takes longer to parse the project than to build a small account's marts. The result depends on the project's files,
on dbt and on the target. Of a warehouse it has only the names of database and schemas, which are replaced, so that all
warehouses share it: in `transforms/target/`, or in the user's cache if the package is installed. dbt's own cache
(`partial_parse`) works for one database file only.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import platformdirs
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.adapters.duckdb.environments import local
from dbt.cli.main import cli, dbtRunner, dbtRunnerResult
from dbt.contracts.graph.manifest import Manifest
from dbt_common.exceptions import DbtRuntimeError

from msgbubbles_sync.extras import IS_CHECKOUT
from msgbubbles_sync.sql import limit_seconds

from .command_result import TIMED_OUT
from .project import PROJECT, Names, compute_key

KEY_BYTES = 32
# The environment variables that set options of dbt, such as DBT_EMPTY, with which the marts would have no rows.
OPTIONS = {
    name
    for command in (cli, *cli.commands.values())
    for option in command.params
    for name in ([option.envvar] if isinstance(option.envvar, str) else option.envvar or ())
}


class _LimitedCursor(local.DuckDBCursorWrapper):  # type: ignore[misc]
    """Ends statements that take too long: DuckDB has no setting for that."""

    timeout_seconds = 0

    def execute(self, sql: str, bindings: Any = None) -> Any:
        try:
            with limit_seconds(self._cursor, self.timeout_seconds):
                return super().execute(sql, bindings)
        except duckdb.InterruptException:
            raise DbtRuntimeError(f"{TIMED_OUT}. Correct the model, or raise the limit") from None


local.DuckDBCursorWrapper = _LimitedCursor


def run_dbt(
    command: Sequence[str],
    options: Sequence[str],
    manifest: Manifest | None,
    names: Names,
    on_event: Callable[[Any], None],
    folder: Path | None = None,
    timeout_seconds: int = 0,
) -> tuple[dbtRunnerResult, Manifest | None]:
    """Run a dbt command. Return its result, and the parsed project; null if the project cannot be parsed.

    `manifest` is the parsed project of an earlier command. `names` and `folder` are those of `load_manifest`. A
    statement that takes DuckDB longer than `timeout_seconds` fails; 0 is no limit.
    """
    _LimitedCursor.timeout_seconds = timeout_seconds
    for name in OPTIONS & os.environ.keys():  # they are for other projects of the user
        del os.environ[name]
    try:
        manifest = manifest or load_manifest(names, folder)
        if manifest is None:
            parsed = dbtRunner().invoke(["parse", *options])
            if not isinstance(parsed.result, Manifest):
                return parsed, None
            manifest = parsed.result
            store_manifest(manifest, names, folder)
        return dbtRunner(manifest=manifest, callbacks=[on_event]).invoke([*command, *options]), manifest
    finally:
        DuckDBConnectionManager.close_all_connections()


def load_manifest(names: Names, folder: Path | None = None) -> Manifest | None:
    """Load the manifest of the project as it is now, with these names; null if it has to be parsed.

    `folder` has a copy of the project.
    """
    try:
        content = _get_path(names, folder).read_bytes()
        if content[:KEY_BYTES] != compute_key(names.target, names.own_schemas, folder=folder):
            return None
        parsed_with, _, packed = content[KEY_BYTES:].partition(b"\n")
        manifest = Manifest.from_msgpack(packed)
        _rename(manifest, Names(*json.loads(parsed_with)), names)
    except Exception:  # whatever is wrong with the file, parsing replaces it
        return None
    manifest.build_parent_and_child_maps()
    return manifest


def store_manifest(manifest: Manifest, names: Names, folder: Path | None = None) -> None:
    """Store a manifest for all warehouses. `names` are those that it was parsed with."""
    path = _get_path(names, folder)
    with suppress(OSError):  # the next run parses again
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, new = tempfile.mkstemp(dir=path.parent)
        key = compute_key(names.target, names.own_schemas, folder=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key + json.dumps(names).encode() + b"\n" + manifest.to_msgpack())
        Path(new).replace(path)
        for old in path.parent.glob(f"{names.target}-*.msgpack"):  # an older release had one for each database
            old.unlink()


def _rename(manifest: Manifest, before: Names, after: Names) -> None:
    """Replace the names of database and schemas. Raises `ValueError` if the database's name is not known."""
    for node in (*manifest.nodes.values(), *manifest.sources.values()):
        schema = after.schema_prefix + node.schema.removeprefix(before.schema_prefix)
        *database, old_schema, relation = (node.relation_name or "..").rsplit(".", 2)
        if before.database != after.database:
            if node.database != before.database or not after.database:
                raise ValueError(node.database)
            node.database = after.database
            database = [name.replace(before.database, after.database) for name in database]
        if node.relation_name:
            node.relation_name = ".".join((*database, old_schema.replace(node.schema, schema), relation))
        node.schema = schema
    for test in manifest.unit_tests.values():
        test.schema = after.schema_prefix + (test.schema or "").removeprefix(before.schema_prefix)


def _get_path(names: Names, folder: Path | None) -> Path:
    shared = PROJECT / "target" if IS_CHECKOUT else platformdirs.user_cache_path("msgbubbles") / "dbt"
    return (folder / "target" if folder else shared) / ".".join(
        filter(None, (names.target, names.own_schemas, "msgpack"))
    )
