"""Run the dbt project in this process: build the marts, then test them.

dbt takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.errors import TransformError, was_interrupted
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.lock import record_progress
from msgbubbles_sync.settings import Settings, SyncSettings
from msgbubbles_sync.workspace import Workspace

from . import spark
from .build_result import BuildResult, Timeouts, count_timeouts, load_build_result, store_build_result
from .command_result import CommandResult
from .plan import RUN_TABLES, PlanFile
from .project import (
    PROJECT,
    Names,
    build_variables,
    compute_build_digest,
    compute_key,
    find_last_project,
    store_last_project,
)
from .unreadable import UnreadableFile, UnreadableFiles, find_unreadable_file, list_suspects, load_unreadable_files

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest

# Files in the workspace's folder `dbt`: the digest of the last build, and when all rows were last tested.
BUILD_DIGEST, FULL_TESTS_AT = "built_with", "full_tests_at"
# dbt's targets whose statements DuckDB executes.
PLANNED = ("duckdb", "ducklake")


def is_outdated(workspace: Workspace, settings: Settings) -> bool:
    """Return whether the marts were built by other models, or with other settings."""
    return _read_build_digest(workspace.dbt_folder) != compute_build_digest(settings)


def forget_build(workspace: Workspace) -> None:
    """Let the next build of the marts start from scratch."""
    (workspace.dbt_folder / BUILD_DIGEST).unlink(missing_ok=True)


def check_tools(destination: Destination) -> None:
    """Check that the tools that build the marts are installed and configured. Raises `UsageError`."""
    target, _ = destination.read_dbt_target()
    if target == "spark":
        spark.require()


def transform(destination: Destination, settings: Settings) -> BuildResult:
    """Bring the marts of the work database up to date, test them, and return what failed.

    They are built from scratch if the models have changed, because a new model does not correct the rows of the old
    one. The tests of large tables check the rows that this run touched. All rows, and views with the tag
    `tested_once_a_day`, are tested every `full_tests_hours`, after a build from scratch, and until all tests pass.
    A model that fails, and what is built from it, is built from scratch; if it fails again, so it is in the next run.
    `load_build_result` returns the same later. Raises `TransformError` if no mart could be built, or for a reason that
    the destination explains.
    """
    workspace, digest = destination.workspace, compute_build_digest(settings)
    folder = workspace.dbt_folder
    is_full = _read_build_digest(folder) != digest
    target, environment = destination.read_dbt_target()
    full_tests_at = 0.0 if is_full or target == "spark" else _read_full_tests_at(folder)
    is_due = not 0 <= time.time() - full_tests_at < settings.transforms.full_tests_hours * 3600
    # Until the tests pass: a run that is killed or fails leaves rows that later runs would not test.
    (folder / FULL_TESTS_AT).unlink(missing_ok=True)
    dbt = _Dbt(destination, settings, target, environment, full_tests=is_due)
    before = BuildResult() if is_full else load_build_result(workspace)
    dbt.skip(before)
    dbt.leave_out(load_unreadable_files(workspace, dbt.depends_on[0]))
    result, failed_before = BuildResult(), before.failed_models
    with ExitStack() as stack:
        folders = stack.enter_context(destination.open_build())
        if folders is not None:
            session = stack.enter_context(spark.open_session(settings.transforms.spark, folder))
            spark.register_tables(session, *folders, destination.prefix)
        has_failed = bool(failed_before or before.timed_out)
        can_plan = settings.transforms.planned_runs and target in PLANNED and not is_full and not has_failed
        timeout_seconds = settings.sync.statement_timeout_seconds
        plan = PlanFile(destination, dbt.depends_on, timeout_seconds) if can_plan else None
        unchanged = () if workspace.is_pending("test_runs") else RUN_TABLES
        is_planned = plan is not None and plan.execute(follows_success=full_tests_at > 0, unchanged=unchanged)
        if not is_planned:
            destination.close()
            result = dbt.build(failed_before, is_full=is_full)
            write_privately(folder / BUILD_DIGEST, digest)
            if not (result.failed_models or dbt.unreadable.files):
                store_last_project(workspace, digest)
        has_tests = settings.transforms.data_tests != "off"
        if has_tests and not (is_planned and plan is not None and plan.passes_tests()):
            result = dbt.test(result)
        unbuilt = sorted({*result.unbuilt_marts, *dbt.unreadable.marts})
        result = replace(
            result, unbuilt_marts=unbuilt, unreadable_files=dbt.unreadable.describe(workspace), timed_out=dbt.timed_out
        )
        if plan is not None and not is_planned and not dbt.has_rebuilt:
            plan.record(dbt.nodes, dbt.executed)
    if has_tests and not result.failed_tests and not result.failed_models:
        write_privately(folder / FULL_TESTS_AT, str(time.time() if is_due else full_tests_at))
        workspace.set_done("test_runs")
    store_build_result(workspace, result)
    return result


def compile_models(destination: Destination, settings: Settings) -> None:
    """Check that the models compile; needs no database. Raises `TransformError`."""
    dbt = _Dbt(destination, settings, "duckdb", {"MSGBUBBLES_DUCKDB_PATH": ":memory:"})
    # dbt would select the tests of the models too, and compiling those takes six times as long.
    result = dbt.run("compile", "--select", "resource_type:model", "--indirect-selection", "empty")
    if result.failed:
        raise TransformError(f"the models do not compile ({result.names}); see {result.write_details()}")


class _Dbt:
    """dbt on one database. The project is parsed once for all commands."""

    def __init__(
        self,
        destination: Destination,
        settings: Settings,
        target: str,
        environment: dict[str, str],
        *,
        full_tests: bool = True,
    ) -> None:
        self._destination, self._workspace, self._settings = destination, destination.workspace, settings
        self.target, self._environment, self._full_tests = target, environment, full_tests
        prefix, sync = destination.prefix, settings.sync
        marts_schema = sync.schema_names[destination.marts_schema]
        self._marts_schema = f"{prefix}{marts_schema}"
        file = environment.get("MSGBUBBLES_DUCKDB_PATH", "")
        # DuckDB's own name of a file.
        name = "memory" if file == ":memory:" else Path(file).name.lstrip(".").partition(".")[0]
        database = environment.get("PGDATABASE") or name
        has_own_names = sync.schema_names != SyncSettings().schema_names
        own_schemas = ".".join([sync.raw_schema, sync.staging_schema, marts_schema]) if has_own_names else ""
        self._names = Names(target, database, prefix, own_schemas)
        folder = self._workspace.dbt_folder
        variables = {
            **build_variables(settings),
            "schema_prefix": prefix,
            "raw_schema": sync.raw_schema,
            "staging_schema": sync.staging_schema,
            "marts_schema": marts_schema,
            "full_tests": full_tests,
        }
        self._options = [
            *("--target", target),
            *("--vars", json.dumps(variables)),
            *("--target-path", str(folder / "target"), "--log-path", str(folder / "logs")),
            *("--quiet", "--log-level", "none", "--log-level-file", "none", "--no-write-json"),
        ]
        self._manifest: Manifest | None = None
        # A copy of the project without the files that dbt cannot read.
        self._copy: Path | None = None
        self.unreadable = UnreadableFiles()
        # Whether models were built from scratch that would otherwise have been updated.
        self.has_rebuilt = False
        # The inputs of the statements of a run, except for the relations in the database.
        self.depends_on = (compute_key(*self._names).hex(), json.dumps(variables), settings.transforms.data_tests)
        # The nodes of all commands; the statements executed for them, in order, each with the id of its node.
        self.nodes: list[Any] = []
        self.executed: list[tuple[str, str]] = []
        self._building: set[str] = set()
        # The models and data tests that took too long, and those of them that are not run again yet.
        self.timed_out: Timeouts = {}
        self._waiting: list[str] = []

    def skip(self, before: BuildResult) -> None:
        """Do not run what took too long, until some time has passed."""
        self.timed_out = before.timed_out
        self._waiting = before.list_waiting(self._settings.sync.statement_timeout_seconds)

    def leave_out(self, unreadable: UnreadableFiles) -> None:
        """Leave these files out of the project from now on, or take the one before. Raises `TransformError`."""
        self.unreadable = unreadable
        if unreadable.files:
            self._copy, self._manifest = unreadable.choose_project(self._workspace), None
            self.depends_on = (compute_key(*self._names, folder=self._copy).hex(), *self.depends_on[1:])

    def run(self, *command: str) -> CommandResult:
        from .process import run_dbt  # imports dbt, which takes seconds

        folder = str(self._copy or PROJECT)
        options = [*self._options, "--project-dir", folder, "--profiles-dir", folder]
        before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        try:
            answer, self._manifest = run_dbt(
                command, options, self._manifest, self._names, self._on_event, self._copy,
                self._settings.sync.statement_timeout_seconds,
            )  # fmt: skip
        finally:
            # They include a password, and libpq would take them for the user's own.
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
        if was_interrupted(answer.exception):  # dbt returns it
            raise KeyboardInterrupt
        result = CommandResult(answer, self._destination)
        self.nodes += result.nodes
        self.timed_out = count_timeouts(
            self.timed_out, result.timed_out, {node.name for node in result.nodes},
            self._settings.sync.statement_timeout_seconds,
        )  # fmt: skip
        if result.failed:
            # The traceback of a failed model holds a cursor in a cycle, which keeps the database open.
            gc.collect()
        return result

    def _on_event(self, event: Any) -> None:
        is_node = event.info.name in ("NodeStart", "NodeFinished")
        if is_node:
            self._building ^= {event.data.node_info.node_name}
        # Its statement may take as long as the limit allows.
        waiting_seconds = self._settings.sync.statement_timeout_seconds if self._building else 0
        progress = f"building {', '.join(sorted(self._building)) or 'the marts'}" if is_node else ""
        record_progress(waiting_seconds, progress, at_once=is_node)
        if event.info.name == "SQLQuery":
            self.executed.append((event.data.node_info.unique_id, event.data.sql))

    def build(self, failed_before: list[str], *, is_full: bool) -> BuildResult:
        """Build the marts. Raises `TransformError` as `transform` does.

        A model that fails may have a table that somebody changed, so it is built from scratch, as are those that failed
        before.
        """
        failed_before = [name for name in failed_before if name not in self._waiting]
        options = ["--full-refresh"] if is_full else _select("--exclude", [*failed_before, *self._waiting])
        result = self.run("run", *options)
        while result.has_not_started and self._leave_out_unreadable_file(result.messages):
            result = self.run("run", *options)
        if self.target != "spark" and not is_full and not result.has_not_started:
            failed = [*failed_before, *(failed.node.name for failed in result.failed)]
            if failed and result.reason is None and not result.timed_out:
                self.has_rebuilt = True
                selected = (*_select("--select", failed), *_select("--exclude", self._waiting))
                result = self.run("run", "--full-refresh", *selected)
        nodes = self._list_failed(result, "model")
        if not nodes and not result.failed:
            return BuildResult()
        unbuilt = self._find_marts([*nodes, *result.skipped])  # all are skipped if `on-run-start` fails
        if not self._is_limited(result, unbuilt):
            self.unreadable.refuse(self._workspace)
            error = TransformError(f"the marts could not be built ({result.names}){result.explain()}")
            digest = compute_build_digest(self._settings)
            if result.reason or not find_last_project(self._workspace, digest):
                raise error
            # Nothing can be built from the project since it has changed.
            self.leave_out(self.unreadable.add(UnreadableFile("", is_optional=False), result.messages))
            try:
                built = self.build([], is_full=True)
            except TransformError:
                raise error from None
            self.unreadable.store(self._workspace)
            return built
        if result.failed:
            result.write_details()
        return BuildResult(failed_models=[node.name for node in nodes], unbuilt_marts=sorted(unbuilt))

    def _list_failed(self, result: CommandResult, kind: str) -> list[Any]:
        """Return the models or tests that failed, and those that were not run because they took too long before."""
        nodes = self._manifest.nodes.values() if self._manifest else ()
        waiting = [node for node in nodes if node.resource_type == kind and node.name in self._waiting]
        return [*(failed.node for failed in result.failed if failed), *waiting]

    def _leave_out_unreadable_file(self, message: str) -> bool:
        """Leave out the file that dbt cannot read, and return whether there is one. Raises as `leave_out` does."""
        if self.unreadable.is_needed:
            return False
        before, project = self.unreadable, self._copy or PROJECT
        file = find_unreadable_file(message, project)
        if file is not None:
            self.leave_out(before.add(file, message))
        elif self._manifest is not None or not self._find_by_trying(message, list_suspects(project)):
            self.leave_out(before)
            return False
        self.unreadable.store(self._workspace)
        return True

    def _find_by_trying(self, message: str, suspects: list[UnreadableFile]) -> bool:
        """Leave out the fewest of these files without which dbt does not report this. Return whether that helps."""
        before, files = self.unreadable, list[UnreadableFile]()
        reported = message.replace(str(self._copy or PROJECT), "")

        def try_without(files: list[UnreadableFile]) -> str:
            left_out = before
            for file in files:
                left_out = left_out.add(file, message)
            self.leave_out(left_out)
            result = self.run("parse")
            return result.messages.replace(str(self._copy), "") if result.has_not_started else ""

        for suspect in suspects:
            error = try_without([*files, suspect])
            if f"'{Path(suspect.path).stem}'" in error:  # others need it
                continue
            files.append(suspect)
            if error != reported:
                break
        else:
            return False
        for file in files[:-1]:
            others = [other for other in files if other != file]
            files = files if try_without(others) == reported else others
        try_without(files)
        return True

    def test(self, built: BuildResult) -> BuildResult:
        """Run the data tests of what was built. One that ends with an error, as when a view cannot be read, has failed.

        Raises `TransformError` if the error concerns more than some marts.
        """
        self._destination.close()
        excluded = [f"{model}+" for model in built.failed_models]
        if not self._full_tests:
            excluded.append("tag:tested_once_a_day")
        excluded += self._waiting
        options = ["--exclude", " ".join(excluded)] if excluded else []
        result = self.run("test", "--exclude-resource-type", "unit_test", *options)
        nodes = self._list_failed(result, "test")
        if not nodes and not result.failed:
            return built
        if result.failed and not built.failed_models:
            result.write_details()
        marts = self._find_marts(nodes)
        has_error = any(failed is None or failed.status == "error" for failed in result.failed)
        if has_error and not self._is_limited(result, marts):
            raise TransformError(f"the marts could not be tested ({result.names}){result.explain()}")
        rows = {node.name: 0 for node in nodes} | {node.node.name: node.failures or 0 for node in result.failed}
        return replace(built, failed_tests=[*rows], marts=sorted(marts), failed_rows=rows)

    def _is_limited(self, result: CommandResult, marts: set[str]) -> bool:
        """Return whether what failed concerns only these marts, and others are as they should be."""
        nodes = self._manifest.nodes.values() if self._manifest else ()
        models = (node for node in nodes if str(node.resource_type) == "model" and node.schema == self._marts_schema)
        is_alone = not result.has_not_started and marts < {node.name for node in models}
        return is_alone and all(self._destination.concerns_one_table(str(failed.message)) for failed in result.failed)

    def _find_marts(self, nodes: Iterable[Any]) -> set[str]:
        """Find the marts that models are or tests read, and those that are built from them."""
        if self._manifest is None:
            return set()
        marts: set[str] = set()
        queue: list[str] = []
        seen: set[str] = set()
        for node in nodes:
            queue += node.depends_on.nodes if node.resource_type == "test" else [node.unique_id]
        while queue:
            unique_id = queue.pop()
            if unique_id in seen:
                continue
            seen.add(unique_id)
            if unique_id.startswith("test."):
                continue
            node = self._manifest.nodes.get(unique_id)
            if node is not None and node.schema == self._marts_schema:
                marts.add(node.name)
            queue += self._manifest.child_map.get(unique_id, ())
        return marts


def _select(option: str, models: list[str]) -> list[str]:
    """Return the arguments that select models and what is built from them."""
    return [option, " ".join(f"{model}+" for model in models)] if models else []


def _read_build_digest(folder: Path) -> str:
    """Return the digest of the last build; empty if there was none."""
    path = folder / BUILD_DIGEST
    return path.read_text(errors="replace") if path.exists() else ""


def _read_full_tests_at(folder: Path) -> float:
    """Return when all rows were tested, if no run since has left rows that fail or were not tested; else 0."""
    with suppress(OSError, ValueError):
        return float((folder / FULL_TESTS_AT).read_text())
    return 0.0
