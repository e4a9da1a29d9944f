"""The dlt source for MsgBubbles: chats, messages (with their attachments) and numbers.

import dlt
from msgbubbles.source import msgbubbles_source

pipeline = dlt.pipeline("conversations", destination="duckdb", dataset_name="msgbubbles")
pipeline.run(msgbubbles_source())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import dlt
from dlt.extract import DltResource

from msgbubbles.client import BASE_URL, Client
from msgbubbles.policy import SECTION, Policy, Pseudonymizer, parse_policy
from msgbubbles.private_client import build_client
from msgbubbles.rate_limit import RateLimiter
from msgbubbles.redact import Redactor
from msgbubbles.settings import DEFAULTS, SourceSettings, build_source_settings
from msgbubbles.transport import Transport

from .buffer import RowBuffer
from .chats import read_chats
from .config import Settings
from .messages import read_messages
from .numbers import read_numbers
from .run import Run
from .stored import Warehouse
from .streams import Read, read_stream

__all__ = ["BASE_URL", "Client", "Run", "msgbubbles_source"]


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
    """What is new in an account since the last load, what was not read before, and what has to be read again.

    Args are configuration: `dlt_config/config.toml` of this project documents each. `privacy` are settings as in its
    section of that name, or a `Redactor`. `run` is a `Run`: what this run may do, and what came of it.

    Raises the errors of `msgbubbles.errors`, wrapped by dlt.
    """
    # Before any other local: each setting is an argument of its name.
    given = {name: value for name, value in locals().items() if name in SourceSettings.__struct_fields__}
    run = run or Run()
    source = build_source_settings(given)
    settings = run.settings = Settings.from_source(source)
    redactor = privacy if isinstance(privacy, Redactor) else _configured_redactor(privacy)

    def resource(read: Read, *tables: str) -> Any:
        def read_it() -> Iterator[Any]:
            run.warehouse = run.warehouse or Warehouse.from_current_pipeline()
            rate_limiter = (
                RateLimiter.for_key(api_key, source.requests_per_minute, source.budget_dir)
                if source.requests_per_minute
                else None
            )
            transport = Transport(
                source.base_url,
                api_key,
                rate_limiter,
                timeout_seconds=source.timeout_seconds,
                max_attempts=source.max_attempts,
                traffic=run.traffic,
                max_requests=run.max_requests,
                stop=run.stop,
                on_wait=run.on_wait,
                clock=run.clock,
            )
            with (
                build_client(transport, redactor, _stored_chats(run), source.sender_field) as client,
                run.warehouse.connected() if run.warehouse else nullcontext(),
            ):
                buffer = RowBuffer(tables, run.warehouse, run.changes)
                yield from read_stream(read, client, buffer, dlt.current.resource_state(), settings, run)

        return dlt.resource(read_it, name=tables[0])

    # Messages before chats: then the chat of every message that is new exists when the chats are read.
    return (
        resource(read_numbers, "numbers"),
        resource(read_messages, "messages", "attachments"),
        resource(read_chats, "chats", "messages", "attachments", "participant_reads", "participant_lists"),
    )


def _configured_redactor(given: Any) -> Redactor:
    """From settings as they are given, or as dlt has them, one by one: its providers may each have some of them."""
    own: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    names = ("preset", *Policy.__struct_fields__)
    settings: dict[str, Any] = {name: dlt.config.get(f"{SECTION}.{name}") for name in names}
    policy = parse_policy(settings | own)
    key = own.get("key") or dlt.secrets.get(f"{SECTION}.key")
    return Redactor(policy, Pseudonymizer.from_key(key) if policy.redacts else None)


def _stored_chats(run: Run) -> Callable[[Sequence[str]], Sequence[str]]:
    """A function that says which of some ids are chats in the warehouse."""
    return lambda ids: [chat.id for chat in run.warehouse.chats(ids)] if run.warehouse else ()
