"""Of several rows of a key, one counts, in files as in Delta tables, and within one load as over several."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pyarrow as pa
import pytest

from warehouse.lake_dlt import DeltaTables, TableFiles
from warehouse.tables import is_delta, one_of_each, rows_of_delta, tables_in

Rows = list[tuple[str, int, int]]  # a key, a value, and the second at which it was read


@pytest.fixture(params=[TableFiles, DeltaTables])
def pipeline(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dlt.Pipeline:
    monkeypatch.setenv("NORMALIZE__PARQUET_NORMALIZER__ADD_DLT_LOAD_ID", "true")
    monkeypatch.setenv("RUNTIME__LOG_LEVEL", "CRITICAL")
    destination = request.param(str(tmp_path / "lake"), kwargs={"auto_mkdir": True})
    return dlt.pipeline("some", destination=destination, dataset_name="some", pipelines_dir=str(tmp_path / "dlt"))


def load(pipeline: dlt.Pipeline, *tables: Rows, strategy: str = "delete-insert") -> None:
    schema = pa.schema([("id", pa.string()), ("value", pa.int64()), ("_read_at", pa.timestamp("us", tz="UTC"))])

    @dlt.resource(
        name="things",
        primary_key="id",
        write_disposition={"disposition": "merge", "strategy": strategy},
        columns={"_read_at": {"dedup_sort": "desc"}} if strategy == "delete-insert" else {},
    )
    def things() -> Iterator[pa.Table]:
        for rows in tables:
            instants = [datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for _, _, second in rows]
            columns = [[row[0] for row in rows], [row[1] for row in rows], instants]
            yield pa.table(columns, schema=schema)

    pipeline.run(things(), loader_file_format="parquet")


def found(pipeline: dlt.Pipeline) -> tuple[list[Any], list[Any]]:
    """What the job finds there, and what readers do."""
    with pipeline.sql_client() as client, client.execute_query("SELECT id, value FROM things") as cursor:
        by_job = sorted(tuple(row) for row in cursor.fetchall())
    folder = Path(pipeline.sql_client().remote_client.dataset_path)  # type: ignore[attr-defined]
    [table] = [table for table in tables_in(folder) if table.name == "things"]
    path = folder / "things"
    query = rows_of_delta(path) if is_delta(path) else one_of_each(table, [f"{path}/*.parquet"])
    with duckdb.connect() as connection:
        return by_job, sorted(connection.execute(f"SELECT id, value FROM ({query})").fetchall())


def test_the_last_row_of_a_key_counts(pipeline: dlt.Pipeline) -> None:
    load(pipeline, [("a", 1, 1), ("b", 2, 2)], [("b", 3, 1), ("c", 4, 1)])
    expected = [("a", 1), ("b", 2), ("c", 4)]
    assert found(pipeline) == (expected, expected), "of one load, what was read last"
    load(pipeline, [("a", 5, 0), ("d", 6, 1)], [("d", 7, 2)])
    expected = [("a", 5), ("b", 2), ("c", 4), ("d", 7)]
    assert found(pipeline) == (expected, expected), "of several, what was loaded last"


def test_the_first_row_of_a_key_counts_where_nothing_replaces_it(pipeline: dlt.Pipeline) -> None:
    load(pipeline, [("a", 1, 1)], strategy="insert-only")
    load(pipeline, [("a", 2, 2), ("b", 9, 2)], [("b", 3, 1)], strategy="insert-only")
    assert found(pipeline) == ([("a", 1), ("b", 3)], [("a", 1), ("b", 3)])


def test_a_table_without_rows_has_its_columns(pipeline: dlt.Pipeline) -> None:
    load(pipeline, [])
    assert found(pipeline) == ([], [])
