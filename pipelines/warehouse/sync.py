"""One run of the job: load what is new, slice by slice; bring the marts up to date; publish.

Imports dlt, so `Place.configure_dlt` comes before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dlt
from dlt.common.exceptions import SignalReceivedException
from dlt.pipeline.exceptions import PipelineStepFailed

from msgbubbles import Run, msgbubbles_source
from msgbubbles.errors import Interrupted, MsgBubblesError

from .place import Place
from .publish import clone, publish
from .transform import is_outdated, transform

PIPELINE = "msgbubbles"
DATASET = "msgbubbles"


@dataclass
class Report:
    """What came of a run. Seconds are of the wall clock, by phase."""

    slices: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    published_bytes: int | None = None
    rows_in_warehouse: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began


def sync(
    place: Place,
    run: Run,
    source_options: dict[str, Any],
    *,
    with_transform: bool,
    say: Callable[[str], None],
) -> Report:
    """Bring the warehouse up to date with the API, as far as `run` allows.

    Faults of the API end the reading and are kept in `run.error`: what was read before is loaded and published.
    Raises what dlt, dbt and DuckDB raise; then the next run goes on from the last load that was finished.
    """
    report = Report()
    _recover(place)
    run.keep_on_error = True
    run.on_rows = lambda: place.set_pending("transform", "publish")
    pipeline = dlt.pipeline(
        PIPELINE,
        destination=dlt.destinations.duckdb(str(place.work)),
        dataset_name=DATASET,
        pipelines_dir=str(place.folder / "dlt"),
    )
    with report.timed("load"), _stopping(run):
        if pipeline.has_pending_data:
            say("finishing the load of a run that was cut off")
            pipeline.run()
        while report.slices == 0 or run.unfinished:
            pipeline.run(msgbubbles_source(run=run, **source_options))
            report.slices += 1
            if run.unfinished:
                say(f"slice {report.slices} is loaded")
    # Whoever stops a run wants it to end now: the marts are brought up to date by the next one.
    if run.stop.is_set():
        run.halt = run.halt or Interrupted("stopped")
        return report
    if with_transform and (place.is_pending("transform") or is_outdated(place)):
        place.set_pending("publish")
        say("building the marts")
        with report.timed("transform"):
            transform(place)
        place.set_done("transform")
    if place.is_pending("publish") or not place.database.exists():
        say("publishing")
        with report.timed("publish"):
            report.rows_in_warehouse = _row_counts(place.work)
            report.published_bytes = publish(place.work, place.database)
        place.set_done("publish")
    return report


def _recover(place: Place) -> None:
    """Without the job's own database, begin with the published one: coverage is in there, with the rows."""
    if not place.work.exists() and place.database.exists():
        # A kill in the middle must not leave half a file under the name that counts.
        copy = place.work.with_suffix(".copying")
        clone(place.database, copy)
        copy.replace(place.work)


@contextmanager
def _stopping(run: Run) -> Iterator[None]:
    """A signal that reaches dlt while it loads stops the run as one that reaches us does. What dlt has on disk is
    loaded by the next run."""
    try:
        yield
    except SignalReceivedException:
        run.stop.set()
    except PipelineStepFailed as failure:
        if isinstance(failure.exception, SignalReceivedException):
            run.stop.set()
            return
        fault = _cause(failure, MsgBubblesError)
        if fault is not None:
            raise fault from None
        raise


def _cause(error: BaseException | None, kind: type[MsgBubblesError]) -> MsgBubblesError | None:
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None


def _row_counts(work: Path) -> dict[str, int]:
    import duckdb

    wanted = ("chats", "messages", "attachments", "numbers", "rejected_rows", "thread_activity", "group_membership")
    with duckdb.connect(str(work), read_only=True) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema IN ('msgbubbles', 'marts')"
        ).fetchall()
        counts = {}
        for schema, table in sorted(tables, key=lambda found: wanted.index(found[1]) if found[1] in wanted else 99):
            if table in wanted:
                row = connection.execute(f'SELECT count(*) FROM "{schema}"."{table}"').fetchone()  # noqa: S608
                counts[f"{schema}.{table}"] = row[0] if row else 0
    return counts
