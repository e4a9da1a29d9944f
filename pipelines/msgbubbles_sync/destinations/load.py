"""Build the dlt pipelines that load a warehouse."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgbubbles.source.arrow import build_arrow_rows, build_arrow_table, build_item
from msgbubbles.source.lazy_dlt import dlt
from msgbubbles.tables import Strategy, Table
from msgbubbles_sync.files import remove
from msgbubbles_sync.tables import LATER_TABLES, WEBHOOK_EVENTS
from msgbubbles_sync.workspace import PIPELINE

from .base import Destination


def build_fresh_pipeline(destination: Destination, name: str) -> dlt.Pipeline:
    """Build a pipeline without the files of its last run, for rows that stay in a file of ours until they are loaded.

    A killed run leaves dlt's files in any state. None of them is needed here, because dlt restores the schema from the
    destination. The caller holds the warehouse's lock.
    """
    remove(destination.workspace.dlt_folder / name)
    pipeline = build_pipeline(destination, name)
    pipeline.sync_destination()
    return pipeline


def load_rows(destination: Destination, name: str, rows: Iterable[tuple[Table, list[dict[str, Any]]]]) -> None:
    """Load rows of a file of ours with a fresh pipeline; a table without rows is created.

    The caller holds the warehouse's lock.
    """
    resources = [
        dlt.resource([build_item(table, build_arrow_rows(table, own))], name=table.name) for table, own in rows
    ]
    pipeline = build_fresh_pipeline(destination, name)
    pipeline.run(resources, loader_file_format=destination.file_format)


def build_pipeline(destination: Destination, name: str = PIPELINE) -> dlt.Pipeline:
    """Build a pipeline that loads the warehouse. The caller holds the warehouse's lock."""
    destination.keep_lock()
    destination.close()
    folder = destination.workspace.dlt_folder
    dlt_files = folder / name
    # dlt moves a normalized package to its place, and then removes its source. If it was killed between the two, moving
    # the package a second time would fail in every run.
    for extracted in (dlt_files / "normalize" / "extracted").glob("*"):
        if (dlt_files / "load" / "normalized" / extracted.name).exists():
            shutil.rmtree(extracted)
    return dlt.pipeline(
        name,
        destination=destination.build_dlt_destination(),
        dataset_name=destination.dataset,
        pipelines_dir=str(folder),
    )


def build_missing_tables(pipeline: dlt.Pipeline) -> dlt.sources.DltResource | None:
    """Build a resource that creates the tables of other pipelines, empty; null if the pipeline has created them.

    Those load them when there is something to load. Readers find the documented tables before that.
    """
    name = pipeline.default_schema_name
    created: Mapping[str, Any] = pipeline.schemas[name].tables if name else {}
    missing = [
        table
        for table in LATER_TABLES
        if not {*table.column_names} <= created.get(table.name, {"columns": {}})["columns"].keys()
    ]
    if not missing:
        return None

    def items() -> Iterator[Any]:
        for table in missing:
            # dlt takes the strategy of a table from its first item.
            strategy: Strategy = "insert-only" if table is WEBHOOK_EVENTS else "delete-insert"
            yield build_item(table, build_arrow_table(table, ()), strategy)

    return dlt.resource(items, name="missing_tables")
