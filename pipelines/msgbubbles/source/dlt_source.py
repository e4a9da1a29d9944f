"""Define the source for dlt."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dlt
from dlt.extract import DltResource

from msgbubbles.configuration import SOURCE_KEY, SOURCE_SCHEMA, read_values
from msgbubbles.policy import SECTION, Policy, Pseudonymizer, parse_policy
from msgbubbles.redact import Redactor
from msgbubbles.settings import DEFAULTS, SourceSettings, build_source_settings

from .buffer import RowBuffer
from .readers import READERS, build_run_client
from .run import Run
from .stored import Warehouse
from .streams import Read, read_stream


@dlt.source(name="msgbubbles", section="msgbubbles")
def msgbubbles_source(
    api_key: str = dlt.secrets.value,
    base_url: str = DEFAULTS.base_url,
    start_date: str | None = DEFAULTS.start_date,
    lookback_seconds: float = DEFAULTS.lookback_seconds,
    refresh_chats: Sequence[Any] = DEFAULTS.refresh_chats,
    refresh_messages: Sequence[Any] = DEFAULTS.refresh_messages,
    refresh_share: float = DEFAULTS.refresh_share,
    read_participants: bool = DEFAULTS.read_participants,
    sender_field: str | None = DEFAULTS.sender_field,
    requests_per_minute: int = DEFAULTS.requests_per_minute,
    parallel_requests: int = DEFAULTS.parallel_requests,
    budget_dir: str | None = DEFAULTS.budget_dir,
    timeout_seconds: float = DEFAULTS.timeout_seconds,
    max_attempts: int = DEFAULTS.max_attempts,
    privacy: Any = None,
    run: Any = None,
) -> tuple[DltResource, ...]:
    """Load what is new in an account, what was never read, and what is due to be read again.

    `dlt_config/config.toml` of this project documents the arguments, which dlt also reads from the configuration.
    `privacy` is a `Redactor`, or the settings of the section of that name. `run` is a `Run`: the limits of this run,
    and its results.

    Raises the errors of `msgbubbles.errors`, wrapped by dlt.
    """
    # Before any other local: each setting is an argument of its name.
    values = {name: value for name, value in locals().items() if name in SourceSettings.__struct_fields__}
    run = run or Run()
    run.settings = build_source_settings(values)
    if isinstance(privacy, Redactor):  # then the caller has read the configuration
        redactor = privacy
    else:
        _check_configuration()
        redactor = _configure_redactor(privacy)

    def build_resource(read: Read, tables: tuple[str, ...]) -> Any:
        def rows() -> Iterator[Any]:
            run.warehouse = run.warehouse or Warehouse.from_current_pipeline()
            with (
                build_run_client(api_key, redactor, run) as client,
                run.warehouse.connected() if run.warehouse else nullcontext(),
            ):
                buffer = RowBuffer(tables, run.warehouse, run.changes)
                yield from read_stream(read, client, buffer, dlt.current.resource_state(), run)

        return dlt.resource(rows, name=tables[0])

    return tuple(build_resource(read, tables) for read, tables in READERS)


def _check_configuration() -> None:
    """Raise `ConfigurationError` for a setting under [sources.msgbubbles] that does not exist, or has a wrong value."""
    context = dlt.current.run_context()
    for folder in (context.global_dir, context.settings_dir):
        deque(read_values(SOURCE_SCHEMA, Path(folder), SOURCE_KEY), maxlen=0)


def _configure_redactor(privacy: Any) -> Redactor:
    """Build the redactor from the argument and from dlt's configuration, of which each provider may have a part."""
    own: Mapping[str, object] = privacy if isinstance(privacy, Mapping) else {}
    names = ("preset", *Policy.__struct_fields__)
    settings: dict[str, object] = {name: dlt.config.get(f"{SECTION}.{name}") for name in names}
    policy = parse_policy({**settings, **own})
    key = own.get("key") or dlt.secrets.get(f"{SECTION}.key")
    return Redactor(policy, Pseudonymizer.from_key(key) if policy.redacts else None)
