"""Replace the files of Parquet tables by new ones, all or none.

The new files are complete in a folder next to the tables before it gets the name that counts. From then on, a killed
process leaves work that the next one finishes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import duckdb

from msgbubbles_sync.files import read_modified_at_ns, remove, sync_to_disk
from msgbubbles_sync.sql import list_tables, quote_literal, quote_name
from msgbubbles_sync.workspace import DATASET, PIPELINE

from .compaction import STATES
from .parquet_tables import write_json

UNFINISHED, FINISHED = ".rewriting", ".rewritten"
# The names of the new files, by table.
MANIFEST = "files.json"
PARQUET_MAGIC = b"PAR1"  # the first and last four bytes of a file


def load_states(connection: duckdb.DuckDBPyConnection, tables: Path) -> None:
    """Create the table of dlt's states from its files, which hold a JSON document each."""
    columns = "name VARCHAR, pipeline_name VARCHAR, version BIGINT, state VARCHAR"
    connection.execute(f"CREATE TABLE msgbubbles.{STATES} ({columns})")
    for path in (tables / STATES).glob("*.jsonl"):
        document = json.loads(path.read_text())
        values = [path.name, document["pipeline_name"], document["version"], document["state"]]
        connection.execute(f"INSERT INTO msgbubbles.{STATES} VALUES (?, ?, ?, ?)", values)  # noqa: S608


def read_state_version(tables: Path) -> int:
    """Return the version of dlt's state that was stored last; 0 without one."""
    # The names are `pipeline__load__hash.jsonl`.
    files = sorted((tables / STATES).glob(f"{PIPELINE}__*.jsonl"), key=lambda path: path.name.split("__")[1])
    return int(json.loads(files[-1].read_text())["version"]) if files else 0


def find_damaged(tables: Path, whole_until: Path, *, is_thorough: bool = False) -> list[Path]:
    """Return the files of tables, and of states, that were cut off; with `is_thorough`, all that cannot be read.

    Notes in the modification time of `whole_until` that of the newest file when all were whole. Otherwise, the files of
    tables, which become many, are read only if they have been written since.
    """
    files = [*tables.glob("*/*.parquet"), *(tables / STATES).glob("*.jsonl")]
    written_at_ns = {path: read_modified_at_ns(path) for path in files}
    known_ns = 0 if is_thorough else read_modified_at_ns(whole_until)
    due = [path for path, at_ns in written_at_ns.items() if at_ns >= known_ns or path.suffix == ".jsonl"]
    is_intact = _is_readable if is_thorough else _is_whole
    damaged = [path for path in due if not is_intact(path)]
    if files and not damaged:
        whole_until.touch()
        os.utime(whole_until, ns=(max(written_at_ns.values()),) * 2)
    return damaged


def _is_whole(path: Path) -> bool:
    if path.suffix == ".jsonl":
        try:
            json.loads(path.read_text())
        except ValueError:
            return False
        return True
    with path.open("rb") as file:
        starts_well = file.read(4) == PARQUET_MAGIC
        file.seek(max(path.stat().st_size - 4, 4))
        return starts_well and file.read() == PARQUET_MAGIC


def _is_readable(path: Path) -> bool:
    if path.suffix == ".jsonl":
        return _is_whole(path)
    rows = f"FROM read_parquet({quote_literal(str(path))}) AS rows"
    with duckdb.connect() as connection, suppress(duckdb.InvalidInputException):
        connection.execute(f"SELECT bit_xor(hash(rows)) {rows}")
        return True
    return False


def replace_files(connection: duckdb.DuckDBPyConnection, tables: Path, names: Mapping[str, str]) -> None:
    """Replace the files of tables by new ones with the rows of the tables in the schema `msgbubbles`.

    Args:
        connection: A connection with the new rows.
        tables: The folder with a folder for each table.
        names: The name of the new file of each table.
    """
    new = tables / UNFINISHED
    remove(new)
    for table, name in names.items():
        (new / table).mkdir(parents=True)
        path = quote_literal(str(new / table / name))
        connection.execute(f"COPY ({_select_rows(connection, table)}) TO {path} (FORMAT parquet)")
        sync_to_disk(new / table / name)
    manifest = {table: [name] for table, name in names.items()}
    if STATES in list_tables(connection, f"scratch.{DATASET}") and (tables / STATES).exists():
        manifest[STATES] = _write_states(connection, tables, new)
    write_json(new / MANIFEST, manifest)
    sync_to_disk(new)
    new.rename(tables / FINISHED)
    sync_to_disk(tables)
    finish_replacing(tables)


def _select_rows(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    """Return a query in which JSON has the type that dlt gives it."""
    columns = connection.execute(f"DESCRIBE msgbubbles.{quote_name(table)}").fetchall()
    is_loaded = any(name == "_dlt_load_id" for name, *_ in columns)
    texts = [quote_name(name) for name, kind, *_ in columns if kind == "JSON" and is_loaded]
    replaced = f" REPLACE ({', '.join(f'CAST({name} AS VARCHAR) AS {name}' for name in texts)})" if texts else ""
    return f"SELECT *{replaced} FROM msgbubbles.{quote_name(table)}"  # noqa: S608


def _write_states(connection: duckdb.DuckDBPyConnection, tables: Path, new: Path) -> list[str]:
    (new / STATES).mkdir()
    states = connection.execute(f"SELECT name, state FROM msgbubbles.{STATES}").fetchall()  # noqa: S608
    for name, state in states:
        document = json.loads((tables / STATES / name).read_text())
        (new / STATES / name).write_text(json.dumps(document | {"state": state}))
    return [name for name, _ in states]


def finish_replacing(tables: Path) -> None:
    """Finish what a killed process has left: put new files in their places, and remove the old ones."""
    remove(tables / UNFINISHED)
    if not (tables / FINISHED).exists():
        return
    manifest: dict[str, list[str]] = json.loads((tables / FINISHED / MANIFEST).read_text())
    for table, names in manifest.items():
        (tables / table).mkdir(exist_ok=True)
        for name in names:
            if (tables / FINISHED / table / name).exists():
                (tables / FINISHED / table / name).replace(tables / table / name)
        for path in (tables / table).iterdir():
            # dlt also has files of its own there.
            if path.name not in names and path.suffix in (".parquet", ".jsonl", ".new"):
                remove(path)
    remove(tables / FINISHED)
