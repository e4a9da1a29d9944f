"""`groups`: a dlt destination. The rows of a pipeline are desired groups, and loading them brings them about.

    import dlt
    from msgbubbles_sync.groups.dlt_destination import groups

    dlt.pipeline("teams", destination=groups(database="warehouse.duckdb")).run(teams, table_name="teams")

It is the `apply` of groups.py, with its ledger beside the database: what a load that failed has done already is not
done again when dlt repeats it. By dlt's default a load that failed for its rows waits to be repeated as it is; with
`LOAD__AUTO_ABORT_ON_TERMINAL_ERROR=true` it is dropped, and the next run takes the rows as they are then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dlt
from dlt.common.destination.exceptions import DestinationTerminalException, DestinationTransientException

from msgbubbles.client import Client
from msgbubbles.errors import MsgBubblesError, RetryableError
from msgbubbles.rate_limit import RateLimiter
from msgbubbles.settings import DEFAULTS
from msgbubbles.transport import Transport
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import AnotherJobRunsError, hold_lock
from msgbubbles_sync.policy.applied import build_redactor
from msgbubbles_sync.workspace import Workspace

from .display import escape
from .job import apply_groups
from .plan import MAX_CREATES, MAX_REMOVALS
from .redact import GroupRedactor

NOT_PRIVATE = (
    "dlt writes the rows of a pipeline to disk as they are, and [sources.msgbubbles.privacy] keeps numbers and "
    "messages from there: apply the table with groups.py"
)


# A batch is validated as a whole, so it is large: groups are few, and each row is a request at most.
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
    max_creates: int = MAX_CREATES,
    max_removals: int = MAX_REMOVALS,
) -> None:
    """Bring about the groups of a batch of rows: columns as in `msgbubbles_sync.groups.desired`.

    Fails for good, so that dlt does not repeat it, when rows are invalid, a guard is exceeded or the API refuses a
    group; the other groups are done. Fails for now when the API cannot be reached or another apply runs.
    """
    try:
        workspace = Workspace.from_path(Path(database))
        workspace.make_folders()
        check_version(workspace, build_destination(workspace))
        if GroupRedactor(build_redactor(workspace)).is_redacting:
            raise UsageError(NOT_PRIVATE)
        rate_limiter = RateLimiter.for_key(api_key, requests_per_minute, budget_dir) if requests_per_minute else None
        transport = Transport(
            base_url, api_key, rate_limiter, timeout_seconds=timeout_seconds, max_attempts=max_attempts
        )
        with hold_lock(workspace.folder, "apply"), Client(transport) as client:
            applied = apply_groups(workspace, client, items, max_creates=max_creates, max_removals=max_removals)
    except (RetryableError, AnotherJobRunsError) as error:
        raise DestinationTransientException(str(error)) from None
    except (UsageError, MsgBubblesError) as error:
        raise DestinationTerminalException(str(error)) from None
    if applied.halt is not None:
        raise DestinationTerminalException(str(applied.halt))
    said = "\n".join(f"{escape(one.key)}: {one.operation}: {one.why}" for one in applied.failures)
    if any(one.outcome == "failed" for one in applied.failures):
        raise DestinationTerminalException(said)
    if applied.failures or applied.not_sent:
        raise DestinationTransientException(said or f"{applied.not_sent:,} operations are left")
