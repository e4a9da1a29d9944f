"""Load the streams of a run: first a pending load, then batch by batch, then missing rows by id."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import duckdb
from msgspec import structs

from msgbubbles import source as sources
from msgbubbles.errors import MsgBubblesError
from msgbubbles.settings import MIN_BATCH_PAGES, SourceSettings
from msgbubbles.source import reconcile
from msgbubbles.source.buffer import COVERAGE, REJECTED, TITLES, Changes
from msgbubbles.source.lazy_dlt import common_exceptions, pipeline_exceptions
from msgbubbles.source.readers import READERS, read_directly
from msgbubbles.source.run import MissingRows, StreamProgress
from msgbubbles.source.state import States
from msgbubbles.source.stored import Warehouse
from msgbubbles.version import VERSION

from .context import Context
from .destinations.duckdb_file import DuckDBFile
from .destinations.duckdb_load import DLT_IS_NEEDED, is_newest_state, read_state, store_load
from .destinations.load import build_missing_tables, build_pipeline
from .destinations.screen import Screen, is_data_error
from .errors import list_causes
from .files import write_privately
from .report import RunReport
from .restore import record_dlt_marks
from .sql import list_tables
from .text import format_count
from .workspace import DATASET

FIRST_BATCH_MINUTES = 2 / 3
REFUSED = """{title} refuses the rows that were read, although it accepts each row alone: remove the constraints or
triggers that were added to {tables}, and run again"""
SILENT = """every list of messages that was requested is empty, although {chats} name messages: ask MsgBubbles why; the
next run reads them again"""
# The number of chats that name messages, since a timestamp, and whether there are messages.
NAMING_CHATS = """SELECT count(*), EXISTS (SELECT 1 FROM {schema}.messages) FROM {schema}.chats
WHERE epoch_ms(last_message_at) >= ? AND deleted_at IS NULL AND from_event_at IS NULL"""
# A file with the digest of dlt's state after the last load, and of what that depended on.
LOADED_WITH = "loaded_with"
# The resource whose rows are held back with a table. Of a table that several load, that is the first.
OWNERS = {table: tables[0] for _, tables in reversed(READERS) for table in tables} | {TITLES: "chats"}
# All resources load these.
SHARED_TABLES = {REJECTED, COVERAGE}


class StreamLoader:
    """Loads what a run reads, and counts it in the report.

    An error of the API ends the reading, and is stored in `run.error`; what was read before is loaded. Raises what dlt
    and DuckDB raise; the next run then continues from the last finished load.
    """

    def __init__(self, context: Context, report: RunReport, source: SourceSettings) -> None:
        self._workspace, self._destination = context.workspace, context.destination
        self._say = context.console.say
        self._report, self._run = report, report.run
        self._source, self._redactor, self._api_key = source, context.redactor, context.settings.api_key
        self._screen = Screen(context.destination)
        self._run.keep_on_error = True
        self._run.on_rows = lambda: self._workspace.set_pending("repair", "transform", "publish")
        self._run.refused = self._screen if self._workspace.is_pending("screen") else None
        self._is_direct = False

    @cached_property
    def _pipeline(self) -> Any:
        return build_pipeline(self._destination)

    def load_all(self, between_batches: Callable[[], None]) -> None:
        """Load everything that is new, and then rows that the new rows show to be missing.

        The first batch takes less than a minute of the rate limit, so that readers of a long run soon have the newest
        rows.
        """
        run, report, batch_pages = self._run, self._report, self._run.batch_pages
        if batch_pages and self._source.requests_per_minute:
            run.batch_pages = min(
                batch_pages, max(round(FIRST_BATCH_MINUTES * self._source.requests_per_minute), MIN_BATCH_PAGES)
            )
        with self._stop_on_signal():
            while report.batches == 0 or run.is_unfinished:
                self._load()
                report.batches += 1
                self._forget_rejected()
                run.batch_pages = batch_pages
                if run.is_unfinished:
                    # The objects of dlt and the source refer to each other, and keep the last rows of the batch. The
                    # collector would find them only after many batches.
                    gc.collect()
                    self._say(f"batch {report.batches} loaded")
                    self._store_failed_reads()
                    between_batches()
            # The rows that a held table lacks are not missing in the others.
            if run.error is None and run.halt is None and not self._destination.held:
                self._reconcile()
                self._report_silence()
        if run.refused is not None and not self._screen.refused_rows and not run.is_stopped:
            self._workspace.set_done("screen")
        self._store_failed_reads()

    def _find_loaded_state(self, destination: DuckDBFile) -> dict[str, Any] | None:
        """Return dlt's state if it and the tables are as the last load has left them, so that dlt is not needed."""
        content, loaded_with = read_state(self._workspace), self._workspace.folder / LOADED_WITH
        if destination.held or self._run.refused is not None or not (content and loaded_with.exists()):
            return None
        if loaded_with.read_text(errors="replace") != self._compute_key(content):
            return None
        state: dict[str, Any] = json.loads(content)
        with destination.open_writer() as connection:
            has_all_tables = OWNERS.keys() | SHARED_TABLES <= {*list_tables(connection, DATASET)}
            return state if has_all_tables and is_newest_state(connection, state) else None

    def _load_directly(self, *resources: str) -> bool:
        """Load without dlt, and return whether the database accepts that. Raises what the readers raise."""
        destination, run, report = self._destination, self._run, self._report
        if not isinstance(destination, DuckDBFile):  # other machines may have loaded into it
            return False
        state = self._find_loaded_state(destination)
        self._is_direct = state is not None
        if state is None:
            return False
        before = copy.deepcopy((run.changes, run.streams))
        run.settings, run.warehouse = self._source, Warehouse(destination.sql_client)
        try:
            with run.warehouse.connected():
                with report.timed("extract"):
                    own = state["sources"]["msgbubbles"]["resources"]
                    rows = read_directly(self._api_key, self._redactor, run, own, resources)
                if rows is not None:
                    with report.timed("commit"), destination.open_writer() as connection:
                        store_load(connection, self._workspace, rows, state)
                    self._record_load()
                    # Whatever may end this run, the next one need not start dlt to check the new state.
                    record_dlt_marks(self._workspace)
        except DLT_IS_NEEDED:
            self._is_direct, run.warehouse = False, None
            self._restore_counts(before)
            return False
        return True

    @property
    def _states(self) -> States:
        if self._is_direct:
            return States.from_pipeline(json.loads(read_state(self._workspace)))
        return States.from_pipeline(self._pipeline.state)

    def _compute_key(self, state: bytes) -> str:
        """Return a digest of the state of a load and of what the load depends on."""
        parts = (VERSION, repr(self._source), repr(self._redactor.policy))
        return hashlib.sha256("\0".join(parts).encode() + state).hexdigest()

    def load_missing(self, missing: MissingRows) -> None:
        """Load these missing rows by id, and nothing else."""
        self._run.missing = missing
        with self._stop_on_signal():
            self._load("chats")
        self._store_failed_reads()

    def _finish_pending(self) -> None:
        if self._destination.held:  # its rows are read again
            self._pipeline.abort_packages()
        if self._pipeline.has_pending_data:
            self._say("finishing the load of an interrupted run")
            if not self._is_accepted(self._pipeline.run):
                self._run.refused = self._screen
            self._destination.remove_failed_loads()

    def _load(self, *resources: str) -> None:
        with self._report.timed("load"):
            if self._load_directly(*resources):
                return
            self._finish_pending()
            while not self._is_accepted(lambda: self._load_once(*resources)):
                self._run.refused = self._screen
        if not self._destination.held:
            self._record_load()

    def _record_load(self) -> None:
        write_privately(self._workspace.folder / LOADED_WITH, self._compute_key(read_state(self._workspace)))

    def _load_once(self, *resources: str) -> None:
        names, held = {*OWNERS.values()}, self._destination.held.keys()
        is_held = names if held & SHARED_TABLES else {OWNERS[table] for table in held & OWNERS.keys()}
        if is_held:
            resources = tuple(name for name in resources or names if name not in is_held)
            if not resources:
                return
        self._destination.keep_lock()
        source = sources.msgbubbles_source(
            **structs.asdict(self._source), api_key=self._api_key, privacy=self._redactor, run=self._run
        )
        missing_tables = build_missing_tables(self._pipeline)
        if missing_tables is not None:
            source.resources.add(missing_tables)
        with self._destination.stay_open_for(self._pipeline):
            self._pipeline.run(source.with_resources(*resources) if resources else source)
        trace = self._pipeline.last_trace
        for step in trace.steps if trace else ():
            if step.step != "run" and step.started_at and step.finished_at:
                phase = "commit" if step.step == "load" else step.step
                self._report.add_seconds(phase, (step.finished_at - step.started_at).total_seconds())

    def _is_accepted(self, load: Callable[[], Any]) -> bool:
        """Load, and return whether the destination accepts the data.

        Refused data is dropped, so that no later run fails because of it. If it was screened, a table is held back from
        now on. Raises `MsgBubblesError` if that does not help, and whatever else `load` raises.
        """
        run = self._run
        before = copy.deepcopy((run.changes, run.streams))
        try:
            load()
        except pipeline_exceptions.PipelineStepFailed as failure:
            if not is_data_error(failure):
                raise
            self._pipeline.abort_packages()
            self._workspace.set_pending("screen")
            if run.refused is not None:
                self._hold_table(failure)
            else:
                self._say("the destination refuses a row: reading the batch again, row by row")
            self._restore_counts(before)
            return False
        return True

    def _restore_counts(self, before: tuple[dict[str, Changes], dict[str, StreamProgress]]) -> None:
        """Forget what a load counted that is done again."""
        self._run.changes.clear()
        self._run.changes.update(before[0])
        self._run.streams = before[1]

    def _hold_table(self, failure: pipeline_exceptions.PipelineStepFailed) -> None:
        """Load nothing more in this run into the table that refuses its rows.

        Raises `MsgBubblesError` if dlt does not name it, or it is held back already.
        """
        job_id = next((cause.job_id for cause in list_causes(failure) if hasattr(cause, "job_id")), "")
        table, held = job_id.partition(".")[0], self._destination.held
        is_known = table in OWNERS.keys() | SHARED_TABLES and table not in held
        what = f"the table {table}" if is_known else f"the tables of {self._destination.dataset}"
        reason = REFUSED.format(title=self._destination.title, tables=what)
        if not is_known:
            raise MsgBubblesError(reason) from None
        held[table] = reason
        self._report.add_failed_part(table, reason)

    def _reconcile(self) -> None:
        """Load by id what the loads of this run, and of earlier runs, show to be missing."""
        run = self._run
        if not (self._workspace.is_pending("repair") or self._states.chats.threads or run.missing):
            return
        run.missing = self._find_missing()
        if run.missing is not None:
            self._say("reading missing rows")
            self._load("messages", "chats")
            # The rows that were missing may prove what could not be proven without them.
            if run.error is None and run.halt is None:
                run.missing = self._find_missing()
                if run.missing is not None and run.missing.chats_proven:
                    self._load("chats")
        if run.missing is None and run.error is None and run.halt is None:
            self._workspace.set_done("repair")

    def _report_silence(self) -> None:
        """Report an API that lists no message at all, although its chats name some."""
        messages = self._run.get_progress("messages")
        if not messages.pages or messages.rows or messages.rejected:
            return
        with self._destination.open_writer() as connection, suppress(duckdb.CatalogException):
            query = NAMING_CHATS.format(schema=self._destination.write_schema)
            ((count, has_messages),) = connection.execute(query, [self._run.settings.start_ms]).fetchall()
            # The only page may be of a chat whose first message is not visible yet.
            if count and (messages.pages > 1 or not has_messages):
                self._report.add_failed_part("messages", SILENT.format(chats=format_count(count, "chat")))

    def _find_missing(self) -> MissingRows | None:
        """Find what finished loads show to be missing."""
        warehouse = (self._run.warehouse if self._is_direct else None) or Warehouse(self._pipeline.sql_client)
        with self._report.timed("load"), warehouse.connected():
            return reconcile.find_missing(warehouse, self._states, self._run.settings)

    def _forget_rejected(self) -> None:
        """Delete the rejected rows that were read again, now that their rows are loaded."""
        hashes = sorted(self._run.readable_again)
        if not hashes:
            return
        self._run.readable_again.clear()
        rewriting = self._destination.rewrite_rows({"rejected_rows"})
        with self._report.isolate("rejected rows"), rewriting as connection:
            query = "DELETE FROM msgbubbles.rejected_rows WHERE row_hash IN (SELECT unnest(?::VARCHAR[]))"
            connection.execute(query, [hashes])
        self._workspace.set_pending("publish")

    def _store_failed_reads(self) -> None:
        report = self._report
        report.failed_reads = self._states.failed_reads
        if self._run.failed_reads_changed:
            # The marts read this table, so it is written before they are built.
            self._workspace.set_pending("transform", "publish", "test_runs")
            report.store_failed_reads()

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """Let a signal that dlt handles while it loads stop the run, like one that this process handles.

        The next run loads what dlt has on disk.
        """
        try:
            yield
        except BaseException as error:
            if self._is_direct:  # do not import dlt for its exceptions
                raise
            signals = common_exceptions.SignalReceivedException
            if isinstance(error, signals) or isinstance(getattr(error, "exception", None), signals):
                self._run.stop.set()
                return
            if isinstance(error, pipeline_exceptions.PipelineStepFailed):
                cause = next((cause for cause in list_causes(error) if isinstance(cause, MsgBubblesError)), None)
                if cause is not None:
                    raise cause from None
            raise
