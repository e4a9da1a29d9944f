"""Run the dbt project in this process: build the marts, then test them.

dbt takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

import gc
import json
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.lock import record_progress
from msgbubbles_sync.settings import Settings, SyncSettings
from msgbubbles_sync.workspace import Workspace

from . import spark
from .plan import PlanFile
from .project import PROJECT, Names, build_variables, compute_build_digest, compute_key

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest


@dataclass(frozen=True)
class DataTestResult:
    """Which data tests failed for the marts as they are built now, and the names of the marts they concern.

    `failed_rows` has the number of rows that fail each; the file of `get_details_path` has queries that select them.
    """

    failed_tests: list[str] = field(default_factory=list)
    marts: list[str] = field(default_factory=list)
    failed_rows: dict[str, int] = field(default_factory=dict)


def is_outdated(workspace: Workspace, settings: Settings) -> bool:
    """Return whether the marts were built by other models, or with other settings."""
    return _read_build_digest(workspace) != compute_build_digest(settings)


def forget_build(workspace: Workspace) -> None:
    """Let the next build of the marts start from scratch."""
    _digest_file(workspace).unlink(missing_ok=True)


def check_tools(destination: Destination) -> None:
    """Check that the tools that build the marts are installed and configured. Raises `UsageError`."""
    target, _ = destination.read_dbt_target()
    if target == "spark":
        spark.require()


def transform(workspace: Workspace, destination: Destination, settings: Settings) -> None:
    """Bring the marts of the work database up to date, and test them.

    They are built from scratch if the models have changed, because a new model does not correct the rows of the old
    one. The tests of large tables check the keys that this run touched, and all rows every `full_tests_hours`, after a
    build from scratch, and until all tests pass again. `load_test_result` returns the result of the tests. Raises
    `TransformError`.
    """
    digest = compute_build_digest(settings)
    is_full = _read_build_digest(workspace) != digest
    target, environment = destination.read_dbt_target()
    full_tests_at = 0.0 if is_full or target == "spark" else _read_full_tests_at(workspace)
    is_due = not 0 <= time.time() - full_tests_at < settings.transforms.full_tests_hours * 3600
    # Until the tests pass: a run that is killed or fails leaves rows that later runs would not test.
    _full_tests_file(workspace).unlink(missing_ok=True)
    dbt = _Dbt(
        workspace, destination.prefix, target, environment, settings, destination.marts_schema, full_tests=is_due
    )
    tested = DataTestResult()
    with ExitStack() as stack:
        folders = stack.enter_context(destination.open_build())
        if folders is not None:
            session = stack.enter_context(spark.open_session(settings.transforms.spark, workspace.folder / "dbt"))
            spark.register_tables(session, *folders, destination.prefix)
        can_plan = settings.transforms.planned_runs and target == "duckdb" and not is_full
        plan = PlanFile(workspace.folder / "dbt" / "plan.json", dbt.depends_on) if can_plan else None
        is_planned = plan is not None and plan.execute(destination, follows_success=full_tests_at > 0)
        if not is_planned:
            destination.release()
            result = dbt.run("run", *(["--full-refresh"] if is_full else []))
            if result.failed:
                raise TransformError(f"the marts could not be built ({result.names}){result.explain(destination)}")
            write_privately(_digest_file(workspace), digest)
        has_tests = settings.transforms.data_tests != "off"
        if has_tests and not (is_planned and plan is not None and plan.passes_tests(destination)):
            tested = dbt.test(destination)
        if plan is not None and not is_planned:
            plan.record(destination, dbt.nodes, dbt.executed)
    if has_tests and not tested.failed_tests:
        write_privately(_full_tests_file(workspace), str(time.time() if is_due else full_tests_at))
    write_privately(_test_result_file(workspace), json.dumps(asdict(tested)))


def load_test_result(workspace: Workspace) -> DataTestResult:
    """Load the result of the data tests when the marts were last built."""
    with suppress(OSError, ValueError, TypeError):
        return DataTestResult(**json.loads(_test_result_file(workspace).read_text()))
    return DataTestResult()


def get_details_path(workspace: Workspace) -> Path:
    """Return the file with the database's messages about what failed last, and the queries of failed data tests."""
    return workspace.folder / "dbt" / "last_error.txt"


def compile_models(workspace: Workspace, prefix: str, settings: Settings) -> None:
    """Check that the models compile; needs no database. Raises `TransformError`."""
    dbt = _Dbt(workspace, prefix, "duckdb", {"MSGBUBBLES_DUCKDB_PATH": ":memory:"}, settings)
    result = dbt.run("compile", "--select", "resource_type:model")
    if result.failed:
        raise TransformError(f"the models do not compile ({result.names}); see {result.write_details()}")


class _Result:
    """The result of a dbt command. `failed` are the nodes that did not succeed, without tests that only warn."""

    def __init__(self, answer: Any, workspace: Workspace) -> None:
        results = getattr(answer.result, "results", ())
        self.nodes: list[Any] = [result.node for result in results]
        self.failed: list[Any] = [result for result in results if result.status in ("error", "fail")]
        self._exception = answer.exception
        self._details = get_details_path(workspace)
        if not answer.success and not self.failed:
            self.failed = [None]

    @property
    def names(self) -> str:
        return ", ".join(node.node.name for node in self.failed if node) or "dbt did not start"

    def explain(self, destination: Destination) -> str:
        """Return the end of a sentence: what the database's messages mean, and the file that has them."""
        reason = destination.explain(self._messages)
        return f"{f': {reason}' if reason else ''}; see {self.write_details()}"

    def write_details(self) -> Path:
        """Write the database's messages to a file, and return its path."""
        with suppress(OSError):  # a full or read-only disk, which the run reports as well
            write_privately(self._details, self._messages + "\n")
        return self._details

    @property
    def _messages(self) -> str:
        messages = [f"{node.node.name}: {node.message}{_describe_query(node)}" for node in self.failed if node]
        return "\n\n".join(messages) or str(self._exception)


def _describe_query(result: Any) -> str:
    """Return the query that selects the rows that fail a data test; empty for other nodes."""
    if result.node.resource_type != "test" or result.status != "fail":
        return ""
    return f"\nThe rows:\n{result.node.compiled_code.strip()}"


class _Dbt:
    """dbt on one database. The project is parsed once for all commands."""

    def __init__(
        self,
        workspace: Workspace,
        prefix: str,
        target: str,
        environment: dict[str, str],
        settings: Settings,
        marts_schema: str = "marts",
        *,
        full_tests: bool = True,
    ) -> None:
        self._workspace, self._environment = workspace, environment
        sync = settings.sync
        marts_schema = sync.schema_names[marts_schema]
        self._marts_schema = f"{prefix}{marts_schema}"
        file = environment.get("MSGBUBBLES_DUCKDB_PATH", "")
        # DuckDB's own name of a file.
        name = "memory" if file == ":memory:" else Path(file).name.lstrip(".").partition(".")[0]
        database = environment.get("PGDATABASE") or name
        has_own_names = sync.schema_names != SyncSettings().schema_names
        own_schemas = ".".join([sync.raw_schema, sync.staging_schema, marts_schema]) if has_own_names else ""
        self._names = Names(target, database, prefix, own_schemas)
        folder = workspace.folder / "dbt"
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
            *("--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)),
            *("--target-path", str(folder / "target"), "--log-path", str(folder / "logs")),
            *("--quiet", "--log-level", "none", "--log-level-file", "none", "--no-write-json"),
        ]
        self._manifest: Manifest | None = None
        # What the statements of a run depend on, except for the relations in the database.
        self.depends_on = (compute_key(*self._names).hex(), json.dumps(variables), settings.transforms.data_tests)
        # The nodes of all commands; the statements executed for them, in order, each with the id of its node.
        self.nodes: list[Any] = []
        self.executed: list[tuple[str, str]] = []

    def run(self, *command: str) -> _Result:
        from .process import run_dbt  # imports dbt, which takes seconds

        before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        try:
            answer, self._manifest = run_dbt(command, self._options, self._manifest, self._names, self._on_event)
        finally:
            # They include a password, and libpq would take them for the user's own.
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
        result = _Result(answer, self._workspace)
        self.nodes += result.nodes
        if result.failed:
            # The traceback of a failed model holds a cursor in a cycle, which keeps the database open.
            gc.collect()
        return result

    def _on_event(self, event: Any) -> None:
        record_progress()
        if event.info.name == "SQLQuery":
            self.executed.append((event.data.node_info.unique_id, event.data.sql))

    def test(self, destination: Destination) -> DataTestResult:
        """Run the data tests. Raises `TransformError` if one of them could not run."""
        destination.release()
        result = self.run("test", "--exclude-resource-type", "unit_test")
        if not result.failed:
            return DataTestResult()
        result.write_details()
        if any(node is None or node.status == "error" for node in result.failed):
            raise TransformError(f"the marts could not be tested ({result.names}){result.explain(destination)}")
        marts = sorted({mart for node in result.failed for mart in self._find_marts(node.node)})
        rows = {node.node.name: node.failures or 0 for node in result.failed}
        return DataTestResult([*rows], marts, rows)

    def _find_marts(self, test: Any) -> set[str]:
        """Find the marts that a test concerns: those it reads, and those that are built from what it reads."""
        if self._manifest is None:
            return set()
        marts: set[str] = set()
        queue, seen = list(test.depends_on.nodes), set()
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


def _digest_file(workspace: Workspace) -> Path:
    return workspace.folder / "dbt" / "built_with"


def _full_tests_file(workspace: Workspace) -> Path:
    return workspace.folder / "dbt" / "full_tests_at"


def _read_full_tests_at(workspace: Workspace) -> float:
    """Return when all rows were tested, if no run since has left rows that fail or were not tested; else 0."""
    with suppress(OSError, ValueError):
        return float(_full_tests_file(workspace).read_text())
    return 0.0


def _test_result_file(workspace: Workspace) -> Path:
    return workspace.folder / "dbt" / "data_tests.json"


def _read_build_digest(workspace: Workspace) -> str:
    """Return the digest of the last build; empty if there was none."""
    path = _digest_file(workspace)
    return path.read_text(errors="replace") if path.exists() else ""
