"""The failures of the last build of the marts, and the models and data tests that took too long."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from msgbubbles_sync.files import write_privately
from msgbubbles_sync.workspace import Workspace

# The file in the workspace's folder `dbt`.
BUILD_RESULT = "data_tests.json"
MAX_PAUSE_SECONDS = 86400
# By the name of a model or a data test: how often it took too long in a row, until when it is not run again (seconds
# since 1970), and the limit in seconds.
Timeouts = dict[str, tuple[int, float, int]]


@dataclass(frozen=True)
class BuildResult:
    """The failures of the last build of the marts.

    Attributes:
        failed_tests: The data tests that failed.
        marts: The marts that they concern.
        failed_rows: The number of rows that fail each; the file of `get_details_path` has queries that select them.
        failed_models: The models that could not be built.
        unbuilt_marts: The marts that these are, or that are built from them: they are as they were before.
        unreadable_files: Which files of the project dbt could not read, so that they were left out, and what to do.
        timed_out: The models and data tests that took too long.
        is_published: Whether readers see what fails its tests, because rows were rewritten, as by an erasure.
    """

    failed_tests: list[str] = field(default_factory=list)
    marts: list[str] = field(default_factory=list)
    failed_rows: dict[str, int] = field(default_factory=dict)
    failed_models: list[str] = field(default_factory=list)
    unbuilt_marts: list[str] = field(default_factory=list)
    unreadable_files: str = ""
    timed_out: Timeouts = field(default_factory=dict)
    is_published: bool = False

    def list_waiting(self, limit_seconds: int) -> list[str]:
        """Return which models and data tests are not run now, because they took longer than this limit."""
        now = time.time()
        return [
            name for name, (_, until, limit) in self.timed_out.items()
            if limit == limit_seconds and now < until <= now + MAX_PAUSE_SECONDS
        ]  # fmt: skip


def count_timeouts(before: Timeouts, late: Collection[str], run: Collection[str], limit_seconds: int) -> Timeouts:
    """Return what took too long, once `run` were run and `late` of these took too long.

    They are run again after twice the limit, then after twice as long each time, up to a day.
    """
    after = {name: value for name, value in before.items() if name not in run}
    for name in late:
        tries = before[name][0] + 1 if name in before else 1
        after[name] = (tries, time.time() + min(limit_seconds << min(tries, 16), MAX_PAUSE_SECONDS), limit_seconds)
    return after


def load_build_result(workspace: Workspace) -> BuildResult:
    """Load what failed when the marts were last built."""
    with suppress(OSError, ValueError, TypeError):
        return BuildResult(**json.loads((workspace.dbt_folder / BUILD_RESULT).read_text()))
    return BuildResult()


def store_build_result(workspace: Workspace, result: BuildResult) -> None:
    write_privately(workspace.dbt_folder / BUILD_RESULT, json.dumps(asdict(result)))


def describe_unbuilt(workspace: Workspace, result: BuildResult) -> str:
    """Return what could not be built, and what that means for readers; empty if everything was built."""
    if not result.failed_models:
        return result.unreadable_files
    late = (
        f"; {name} took too long, and is not built before {datetime.fromtimestamp(until, UTC):%Y-%m-%dT%H:%M:%SZ}"
        for name, (_, until, _) in result.timed_out.items()
        if name in result.failed_models
    )
    failed = (
        f"could not be built: {', '.join(result.failed_models)}; readers keep what was last published of "
        f"{', '.join(result.unbuilt_marts) or '(none)'}. Correct the models as {get_details_path(workspace)} says; "
        f"they are built again when the project changes, or with the next new rows{''.join(late)}"
    )
    return "; ".join(filter(None, (failed, result.unreadable_files)))


def get_details_path(workspace: Workspace) -> Path:
    """Return the file with the database's messages about what failed last, and the queries of failed data tests."""
    return workspace.dbt_folder / "last_error.txt"
