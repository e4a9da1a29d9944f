"""`groups`: a dlt destination that applies the rows of a pipeline as desired groups.

    import dlt
    from msgbubbles_sync.groups.dlt_destination import groups

    dlt.pipeline("teams", destination=groups(database="warehouse.duckdb")).run(teams, table_name="teams")

It works like `groups.py apply`, with the ledger in the workspace of the database: when dlt repeats a failed load, what
was done before is not done again. By dlt's default, a load that failed because of its rows is repeated unchanged. With
`LOAD__AUTO_ABORT_ON_TERMINAL_ERROR=true` it is dropped, and the next run uses the current rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import dlt
from dlt.common.destination.exceptions import DestinationTerminalException, DestinationTransientException

from msgbubbles.client import Client
from msgbubbles.errors import MsgBubblesError, RetryableError
from msgbubbles.rate_limit import RateLimiter
from msgbubbles.settings import DEFAULTS
from msgbubbles.transport import Transport
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import AnotherJobRunsError, hold_lock
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.text import escape
from msgbubbles_sync.workspace import Workspace

from .job import apply_groups
from .plan import LIMITS, ChangeLimits
from .redact import GroupRedactor

NOT_PRIVATE = (
    "dlt writes the rows of a pipeline to disk unredacted, which [sources.msgbubbles.privacy] forbids. Apply the table "
    "with groups.py."
)


class _NoConsole:
    """A console for a pipeline, which reports by exceptions."""

    def say(self, _message: str) -> None:
        pass

    fail = say

    def follow(self, _run: object) -> AbstractContextManager[None]:
        return nullcontext()


# Large, because the rows of a batch are validated together.
@dlt.destination(
    name="groups",
    batch_size=10_000,
    loader_file_format="typed-jsonl",
    naming_convention="direct",
    max_table_nesting=0,
    skip_dlt_columns_and_tables=True,
    max_parallel_load_jobs=1,
)
def groups(
    items: Any,
    table: Any,  # noqa: ARG001 - dlt passes it
    database: str = "warehouse.duckdb",
    api_key: str = dlt.secrets.value,
    base_url: str = DEFAULTS.base_url,
    requests_per_minute: int = DEFAULTS.requests_per_minute,
    budget_dir: str | None = None,
    timeout_seconds: float = DEFAULTS.timeout_seconds,
    max_attempts: int = DEFAULTS.max_attempts,
    max_creates: int = LIMITS.creates,
    max_renames: int = LIMITS.renames,
    max_adds: int = LIMITS.adds,
    max_removals: int = LIMITS.removals,
    max_percent: int = LIMITS.percent,
) -> None:
    """Apply the groups of a batch of rows. See `msgbubbles_sync.groups.desired` for the columns.

    Raises a terminal exception, which dlt does not retry, if rows are invalid, a limit is exceeded, or the API refuses
    a group; the other groups are applied. Raises a transient one if the API cannot be reached or another apply runs.
    """
    try:
        workspace = Workspace.from_path(Path(database))
        workspace.make_folders()
        context = Context(workspace, load_settings(), _NoConsole())
        check_version(context.destination)
        if GroupRedactor(context.redactor).is_redacting:
            raise UsageError(NOT_PRIVATE)
        rate_limiter = RateLimiter.for_key(api_key, requests_per_minute, budget_dir) if requests_per_minute else None
        transport = Transport(
            base_url, api_key, rate_limiter, timeout_seconds=timeout_seconds, max_attempts=max_attempts
        )
        with hold_lock(workspace.folder, "apply"), Client(transport) as client:
            limits = ChangeLimits(max_creates, max_renames, max_adds, max_removals, max_percent)
            applied = apply_groups(context, client, items, limits=limits)
    except (RetryableError, AnotherJobRunsError) as error:
        raise DestinationTransientException(str(error)) from None
    except MsgBubblesError as error:
        raise DestinationTerminalException(str(error)) from None
    if applied.halt is not None:
        raise DestinationTerminalException(str(applied.halt))
    message = "\n".join(f"{escape(failure.key)}: {failure.operation}: {failure.why}" for failure in applied.failures)
    if any(failure.outcome == "failed" for failure in applied.failures):
        raise DestinationTerminalException(message)
    if applied.failures or applied.not_sent:
        raise DestinationTransientException(message or f"{applied.not_sent:,} operations were not sent")
