"""One run of the job: load what is new, slice by slice; bring the marts up to date; publish.

Imports dlt, so `Workspace.configure_dlt` comes before it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import dlt
import duckdb
from dlt.common.exceptions import SignalReceivedException
from dlt.pipeline.exceptions import PipelineStepFailed

from msgbubbles.errors import Interrupted, MsgBubblesError
from msgbubbles.source import msgbubbles_source
from msgbubbles.source import reconcile as repairs
from msgbubbles.source.config import Settings
from msgbubbles.source.run import Repair, Run
from msgbubbles.source.state import FailedRead
from msgbubbles.source.stored import Warehouse
from msgbubbles_sync.dbt.runner import Verdict, check_tools, is_outdated, transform, verdict
from msgbubbles_sync.destinations import claims
from msgbubbles_sync.destinations.screen import Screen, is_data_error
from msgbubbles_sync.destinations.version import store_version
from msgbubbles_sync.policy import applied as privacy
from msgbubbles_sync.settings import TransformSettings

from .destinations import Destination, build_destination
from .destinations.load import build_pipeline, resource_states
from .run_log import Journal, store, store_failed_reads
from .workspace import Workspace

REFUSED = """{title} refuses what was read, and takes each row of it alone: remove the constraints or triggers that were
added to the tables of msgbubbles, and run again"""


@dataclass
class Report:
    """What came of a run. Seconds are of the wall clock, by phase; those of dlt's steps are part of `load`."""

    run_id: str = field(default_factory=lambda: str(uuid4()))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    slices: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    published: bool = False
    published_bytes: int | None = None
    rows_in_warehouse: dict[str, int] = field(default_factory=dict)
    tested: Verdict = field(default_factory=Verdict)
    held_marts: list[str] = field(default_factory=list)
    # What was older than the privacy policy keeps: texts, threads and messages.
    expired: dict[str, int] = field(default_factory=dict)
    # What could not be read, in this run or one before, and is tried again.
    failed_reads: list[FailedRead] = field(default_factory=list)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.add_seconds(phase, time.monotonic() - began)

    def add_seconds(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


def sync(
    workspace: Workspace,
    run: Run,
    report: Report,
    source_options: dict[str, Any],
    *,
    with_transform: bool,
    transforms: TransformSettings,
    publish_minutes: float,
    say: Callable[[str], None],
    record: Callable[[], dict[str, Any]],
) -> None:
    """Bring the warehouse up to date with the API, as far as `run` allows, and say in `report` what was done.

    `transforms` says how the marts are built. A run that changed nothing publishes when the published file is older
    than `publish_minutes`, or when it ends otherwise than the last. `record` gives the record of this run as far as it
    is known.

    Faults of the API end the reading and are kept in `run.error`: what was read before is loaded and published.
    Raises what dlt, dbt and DuckDB raise; then the next run goes on from the last load that was finished.
    """
    build_destination(workspace).prepare()
    if with_transform:
        check_tools(workspace)  # what is missing is told before anything is read
    run.keep_on_error = True
    run.on_rows = lambda: workspace.set_pending("repair", "transform", "publish")
    pipeline = build_pipeline(workspace)

    screen = Screen(build_destination(workspace))
    run.refused = screen if workspace.is_pending("screen") else None

    def load(*resources: str) -> None:
        def load_once() -> None:
            source = msgbubbles_source(run=run, **source_options)
            with build_destination(workspace).keep_open(pipeline):
                pipeline.run(source.with_resources(*resources) if resources else source)
            _add_steps(pipeline, report)

        if not _is_taken(workspace, run, pipeline, load_once, say):
            run.refused = screen
            _is_taken(workspace, run, pipeline, load_once, say)

    with report.timed("load"), _stopping(run):
        if pipeline.has_pending_data:
            say("finishing the load of a run that was cut off")
            if not _is_taken(workspace, run, pipeline, pipeline.run, say):
                run.refused = screen
        while report.slices == 0 or run.unfinished:
            load()
            report.slices += 1
            if run.unfinished:
                say(f"slice {report.slices} is loaded")
        if run.error is None and run.halt is None:
            _repair(workspace, run, pipeline, load, say)
    if run.refused is not None and not screen.found and not run.stopped:
        workspace.set_done("screen")
    _note_failed_reads(workspace, run, pipeline, report)
    # Whoever stops a run wants it to end now: the marts are brought up to date by the next one.
    if run.stop.is_set():
        run.halt = run.halt or Interrupted("stopped")
        return
    _finish(workspace, report, record, say, transforms, with_transform=with_transform, publish_minutes=publish_minutes)


def repair(
    workspace: Workspace,
    run: Run,
    report: Report,
    wanted: Repair,
    source_options: dict[str, Any],
    transforms: TransformSettings,
    say: Callable[[str], None],
    record: Callable[[], dict[str, Any]],
) -> None:
    """Read by id what is wanted, and nothing else; then build the marts and publish. Raises as `sync` does."""
    build_destination(workspace).prepare()
    run.keep_on_error = True
    run.on_rows = lambda: workspace.set_pending("repair", "transform", "publish")
    run.repair = wanted
    pipeline = build_pipeline(workspace)
    run.refused = Screen(build_destination(workspace)) if workspace.is_pending("screen") else None
    with report.timed("load"), _stopping(run):
        if pipeline.has_pending_data:
            pipeline.run()
        pipeline.run(msgbubbles_source(run=run, **source_options).with_resources("chats"))
        _add_steps(pipeline, report)
    _note_failed_reads(workspace, run, pipeline, report)
    if not run.stop.is_set():
        _finish(workspace, report, record, say, transforms, with_transform=True, publish_minutes=math.inf)


def _note_failed_reads(workspace: Workspace, run: Run, pipeline: dlt.Pipeline, report: Report) -> None:
    report.failed_reads = resource_states(pipeline).failed_reads
    if run.failed_reads_changed:
        # The marts are not complete where it says so; and they are built before the rest is written.
        workspace.set_pending("transform", "publish")
        destination = build_destination(workspace)
        with destination.open_writer() as connection:
            store_failed_reads(connection, report.failed_reads, destination.write_schema)


def _finish(
    workspace: Workspace,
    report: Report,
    record: Callable[[], dict[str, Any]],
    say: Callable[[str], None],
    transforms: TransformSettings,
    *,
    with_transform: bool,
    publish_minutes: float,
) -> None:
    """Build the marts and publish, where there is something to do."""
    destination = build_destination(workspace)
    is_due = with_transform and (workspace.is_pending("transform") or is_outdated(workspace, transforms))
    # Without the first answer of the API there is nothing to build of, and its fault is what is to be told.
    if is_due and _has_streams(destination):
        workspace.set_pending("publish")
        say("building the marts")
        with report.timed("transform"):
            transform(workspace, transforms)
        workspace.set_done("transform")
    report.tested = verdict(workspace)
    report.held_marts = report.tested.marts if transforms.data_tests == "hold" else []
    if (
        workspace.is_pending("publish")
        or destination.is_older_than(publish_minutes)
        or _has_turned(workspace, record())
    ):
        say("publishing")
        with report.timed("publish"):
            with destination.open_writer() as connection:
                store(connection, [*Journal(workspace.folder).records(), record()], destination.write_schema)
                store_failed_reads(connection, report.failed_reads, destination.write_schema)
                privacy.store(connection, workspace, destination.write_schema)
                claims.store(connection, workspace, destination.write_schema)
                store_version(connection, destination.write_schema)
                report.rows_in_warehouse = _row_counts(connection)
            report.published_bytes = destination.publish(report.held_marts)
            report.published = True
        workspace.set_done("publish")


def _has_turned(workspace: Workspace, record: dict[str, Any]) -> bool:
    """Whether the run before ended otherwise: readers are to see in `sync_runs` that it fails now, or does no more."""
    last = Journal(workspace.folder).last()
    return last is not None and last["exit_status"] != record["exit_status"]


def _has_streams(destination: Destination) -> bool:
    """Whether the tables of both streams are there."""
    with destination.open_writer() as connection:
        try:
            for stream in ("chats", "messages"):
                connection.execute(f"SELECT 1 FROM {destination.write_schema}.{stream} LIMIT 0")  # noqa: S608
        except duckdb.CatalogException:
            return False
    return True


def _repair(
    workspace: Workspace, run: Run, pipeline: dlt.Pipeline, load: Callable[..., None], say: Callable[[str], None]
) -> None:
    """Read by id what the loads of this run, and of those before, show to be missing."""
    if run.settings is None:
        return
    states = resource_states(pipeline)
    if not (workspace.is_pending("repair") or states.chats.threads or run.repair):
        return
    run.repair = planned(pipeline, run.settings)
    if run.repair is not None:
        say("reading what is missing")
        load("messages", "chats")
        # With the orphans there, what only they could prove may be proven.
        if run.error is None and run.halt is None:
            run.repair = planned(pipeline, run.settings)
            if run.repair is not None and run.repair.chats_proven:
                load("chats")
    if run.repair is None and run.error is None and run.halt is None:
        workspace.set_done("repair")


def planned(pipeline: dlt.Pipeline, settings: Settings) -> Repair | None:
    """What finished loads show to be missing."""
    warehouse = Warehouse(pipeline)
    with warehouse.connected():
        return repairs.planned(warehouse, resource_states(pipeline), settings)


def _add_steps(pipeline: dlt.Pipeline, report: Report) -> None:
    for step in pipeline.last_trace.steps if pipeline.last_trace else ():
        if step.step != "run" and step.started_at and step.finished_at:
            report.add_seconds(
                step.step if step.step != "load" else "commit", (step.finished_at - step.started_at).total_seconds()
            )


def _is_taken(
    workspace: Workspace, run: Run, pipeline: dlt.Pipeline, load: Callable[[], Any], say: Callable[[str], None]
) -> bool:
    """Load, and return whether the destination takes the data. What it refuses is dropped, and so no later run fails
    for it. Raises where it was refused in spite of the screen, and whatever else `load` raises."""
    changes, streams = copy.deepcopy(run.changes), copy.deepcopy(run.streams)
    try:
        load()
    except PipelineStepFailed as failure:
        if not is_data_error(failure):
            raise
        pipeline.abort_packages()
        workspace.set_pending("screen")
        if run.refused is not None:
            raise MsgBubblesError(REFUSED.format(title=build_destination(workspace).title)) from None
        say("the destination refuses a row: what was read is dropped, and read again row by row")
        run.changes.clear()
        run.changes.update(changes)
        run.streams = streams
        return False
    return True


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


def _row_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    wanted = (
        "chats", "messages", "attachments", "numbers", "rejected_rows",
        "thread_activity", "group_membership", "chat_title_history",
    )  # fmt: skip
    tables = connection.execute(
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_schema IN ('msgbubbles', 'marts') AND table_catalog = current_catalog()"
    ).fetchall()
    counts = {}
    for schema, table in sorted(tables, key=lambda found: wanted.index(found[1]) if found[1] in wanted else 99):
        if table in wanted:
            row = connection.execute(f'SELECT count(*) FROM "{schema}"."{table}"').fetchone()  # noqa: S608
            counts[f"{schema}.{table}"] = row[0] if row else 0
    return counts
