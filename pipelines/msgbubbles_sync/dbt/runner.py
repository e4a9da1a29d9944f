"""Runs the dbt project in this process: builds the marts, then tests them.

dbt takes seconds to import, so nothing here is imported before it is used.
"""

from __future__ import annotations

import gc
import json
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgbubbles_sync.destinations import Destination, build_destination
from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.lock import record_progress
from msgbubbles_sync.settings import TransformSettings, load_settings
from msgbubbles_sync.workspace import Workspace

from . import spark
from .manifest_cache import PROJECT, digest_of, store, stored

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest


@dataclass(frozen=True)
class Verdict:
    """What the data tests said of the marts as they are built now: names of the tests that failed, and of the marts
    they concern.
    """

    failed_tests: list[str] = field(default_factory=list)
    marts: list[str] = field(default_factory=list)


def is_outdated(workspace: Workspace, transforms: TransformSettings) -> bool:
    """Whether the models, or the time zone, are not those that the marts were last built with."""
    built_with = _built_with(workspace)
    return not built_with.exists() or built_with.read_text(errors="replace") != _digest(workspace, transforms)


def forget_build(workspace: Workspace) -> None:
    """Have the marts built from scratch when they are built next."""
    _built_with(workspace).unlink(missing_ok=True)


def check_tools(destination: Destination) -> None:
    """See that what builds the marts is installed and configured. Raises `UsageError`."""
    target, _ = destination.read_dbt_target()
    if target == "spark":
        spark.require()


def transform(workspace: Workspace, destination: Destination, transforms: TransformSettings) -> None:
    """Bring the marts of the work database up to date, and test them; from scratch when the models have changed,
    because a new model does not correct what an old one has built. What the tests said is kept for `verdict`. Raises
    `TransformError`.
    """
    options = ["--full-refresh"] if is_outdated(workspace, transforms) else []
    digest = _digest(workspace, transforms)
    target, environment = destination.read_dbt_target()
    dbt = _Dbt(workspace, destination, target, environment, transforms)
    found = Verdict()
    with ExitStack() as stack:
        folders = stack.enter_context(destination.open_build())
        if folders is not None:
            session = stack.enter_context(spark.session(transforms.spark, workspace.folder / "dbt"))
            spark.show(session, *folders, destination.prefix)
        results = dbt.run("run", *options)
        if results.wrong:
            raise TransformError(
                f"the marts could not be built ({results.names}){results.explained(workspace, destination)}"
            )
        write_privately(_built_with(workspace), digest)
        if transforms.data_tests != "off":
            found = dbt.tested()
    write_privately(_verdict_of(workspace), json.dumps(found.__dict__))


def verdict(workspace: Workspace) -> Verdict:
    """What the data tests said when the marts were last built."""
    with suppress(OSError, ValueError, TypeError):
        return Verdict(**json.loads(_verdict_of(workspace).read_text()))
    return Verdict()


def compile_models(workspace: Workspace) -> None:
    """See that the dbt project can be run at all, without a database. Raises `TransformError`."""
    dbt = _Dbt(
        workspace, build_destination(workspace), "duckdb", {"MSGBUBBLES_DUCKDB_PATH": ":memory:"}, TransformSettings()
    )
    results = dbt.run("compile")
    if results.wrong:
        raise TransformError(f"the models do not compile ({results.names}); see {results.written(workspace)}")


class _Results:
    """What a dbt command came to: `wrong` are the nodes that did not succeed, of tests those that only warn not."""

    def __init__(self, answer: Any) -> None:
        nodes = getattr(answer.result, "results", ())
        self.wrong: list[Any] = [node for node in nodes if node.status in ("error", "fail")]
        self._exception = answer.exception
        if not answer.success and not self.wrong:
            self.wrong = [None]

    @property
    def names(self) -> str:
        return ", ".join(node.node.name for node in self.wrong if node) or "dbt did not start"

    def explained(self, workspace: Workspace, destination: Destination) -> str:
        """The end of a sentence: what the database said means, and the file with its words."""
        meant = destination.explain(self._said)
        return f": {meant}; see {self.written(workspace)}" if meant else f"; see {self.written(workspace)}"

    def written(self, workspace: Workspace) -> Path:
        """The file with what the database said."""
        path = workspace.folder / "dbt" / "last_error.txt"
        with suppress(OSError):  # where the disk is full, or is not ours; the run says that too
            write_privately(path, self._said + "\n")
        return path

    @property
    def _said(self) -> str:
        nodes = [f"{node.node.name}: {node.message}" for node in self.wrong if node]
        return "\n\n".join(nodes) or str(self._exception)


class _Dbt:
    """dbt on one database. The project is parsed once, whatever is run of it."""

    def __init__(
        self,
        workspace: Workspace,
        destination: Destination,
        target: str,
        environment: dict[str, str],
        transforms: TransformSettings,
    ) -> None:
        self._workspace, self._destination = workspace, destination
        self._environment = environment
        # All that the parsed project takes from the warehouse.
        database = environment.get("PGDATABASE") or Path(environment.get("MSGBUBBLES_DUCKDB_PATH", "")).stem
        self._prefix = destination.prefix
        self._names = (target, database, transforms.time_zone, self._prefix)
        folder = workspace.folder / "dbt"
        variables = {
            "time_zone": transforms.time_zone,
            "schema_prefix": self._prefix,
            "lookback_seconds": load_settings(workspace.account).source.lookback_seconds,
        }
        self._options = [
            *("--target", target),
            *("--vars", json.dumps(variables)),
            *("--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)),
            *("--target-path", str(folder / "target"), "--log-path", str(folder / "logs")),
            *("--quiet", "--log-level", "none", "--log-level-file", "none", "--no-write-json"),
        ]
        self._manifest: Manifest | None = None

    def run(self, *command: str) -> _Results:
        from dbt.adapters.duckdb.connections import DuckDBConnectionManager
        from dbt.cli.main import dbtRunner
        from dbt.contracts.graph.manifest import Manifest

        before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        try:
            self._manifest = self._manifest or stored(*self._names)
            if self._manifest is None:
                parsed = dbtRunner().invoke(["parse", *self._options])
                if not isinstance(parsed.result, Manifest):
                    return _Results(parsed)
                self._manifest = parsed.result
                store(self._manifest, *self._names)
            runner = dbtRunner(manifest=self._manifest, callbacks=[lambda _event: record_progress()])
            results = _Results(runner.invoke([*command, *self._options]))
            if results.wrong:
                # The traceback of a model that failed holds a cursor in a cycle, which keeps the database open.
                gc.collect()
            return results
        finally:
            DuckDBConnectionManager.close_all_connections()
            # A password is among them, and libpq would take them for the user's own.
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    def tested(self) -> Verdict:
        """Raises `TransformError` when the tests could not be run."""
        results = self.run("test", "--exclude-resource-type", "unit_test")
        if not results.wrong:
            return Verdict()
        results.written(self._workspace)
        if any(node is None or node.status == "error" for node in results.wrong):
            why = results.explained(self._workspace, self._destination)
            raise TransformError(f"the marts could not be tested ({results.names}){why}")
        marts = sorted({mart for node in results.wrong for mart in self._marts_of(node.node)})
        return Verdict([node.node.name for node in results.wrong], marts)

    def _marts_of(self, test: Any) -> set[str]:
        """The marts that a test is about: those it reads, and those that are built from what it reads."""
        if self._manifest is None:
            return set()
        found: set[str] = set()
        queue, met = list(test.depends_on.nodes), set()
        while queue:
            unique_id = queue.pop()
            if unique_id in met:
                continue
            met.add(unique_id)
            if unique_id.startswith("test."):
                continue
            node = self._manifest.nodes.get(unique_id)
            if node is not None and node.schema == f"{self._prefix}marts":
                found.add(node.name)
            queue += self._manifest.child_map.get(unique_id, ())
        return found


def _built_with(workspace: Workspace) -> Path:
    return workspace.folder / "dbt" / "built_with"


def _verdict_of(workspace: Workspace) -> Path:
    return workspace.folder / "dbt" / "data_tests.json"


def _digest(workspace: Workspace, transforms: TransformSettings) -> str:
    patterns = ("*.yml", "models/**/*.yml", "models/**/*.sql", "macros/**/*.sql")
    paths = (path for pattern in patterns for path in PROJECT.glob(pattern))
    lookback_seconds = load_settings(workspace.account).source.lookback_seconds
    return digest_of(paths, transforms.time_zone, str(lookback_seconds)).hexdigest()
