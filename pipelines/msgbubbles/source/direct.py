"""Read what is new without dlt, which is most of what a run that finds little would cost.

The caller loads the rows and stores the state, both or none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from msgbubbles.lazy_pyarrow import pa
from msgbubbles.redact import Redactor
from msgbubbles.tables import Table

from .buffer import RowBuffer
from .coverage import Coverage
from .readers import READERS, build_run_client
from .run import Run
from .streams import read_stream

# The parts of the state of the messages that are states of lists.
LISTS = ("by_feed", "by_thread")


def read_directly(
    api_key: str, redactor: Redactor, run: Run, resources: MutableMapping[str, Any], names: Collection[str]
) -> list[tuple[Table, pa.Table]] | None:
    """Read the resources with these names, or all without any, and return the rows to load.

    `resources` is dlt's state after the last load, and that of this one afterwards. Returns null if it need not be
    stored: there are no rows, and it would only say when the newest page of each list was read.
    """
    before, requests = {name: _describe(state) for name, state in resources.items()}, run.traffic.total
    pages = {stream: progress.pages for stream, progress in run.streams.items()}
    items: list[tuple[Table, pa.Table]] = []
    with build_run_client(api_key, redactor, run) as client:
        for read, tables in READERS:
            if names and tables[0] not in names:
                continue
            state = resources.setdefault(tables[0], {})
            buffer = RowBuffer(tables, run.warehouse, run.changes, build=lambda table, rows: (table, rows))
            items += read_stream(read, client, buffer, state, run)
    read_pages = [progress.pages - pages.get(stream, 0) for stream, progress in run.streams.items()]
    has_read_more = max(read_pages, default=0) > 1 or run.traffic.total - requests > sum(read_pages)
    is_same = {name: _describe(state) for name, state in resources.items()} == before
    return None if is_same and not items and not has_read_more else items


def _describe(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has to be stored of a state: not when which interval was read."""
    described: dict[str, Any] = {
        name: _describe(part) if name in LISTS else part for name, part in state.items() if name != "seen_ms"
    }
    if "covered" in described:
        described["covered"] = Coverage((lo, hi, 0) for lo, hi, _ in described["covered"]).intervals
    return described
