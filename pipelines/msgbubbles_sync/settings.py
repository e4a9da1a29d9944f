"""Declare the settings of the application, each with its type, range and default, and load them.

A value comes from `config.toml`, `secrets.toml` or the environment; a later source overrides an earlier one, and values
of `[accounts.NAME]` override all of them. Unknown keys are refused, so that typing errors are noticed. This module does
not import dlt, which takes seconds: a receiver has to restart quickly after a crash.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from msgbubbles.configuration import (
    FILES,
    SOURCE_KEY,
    SOURCE_SCHEMA,
    Key,
    Schema,
    Text,
    Value,
    find_account,
    read_toml,
    read_values,
)
from msgbubbles.errors import ConfigurationError
from msgbubbles.policy import FULL, PRESETS, Policy, parse_policy
from msgbubbles.settings import MIN_BATCH_PAGES, RefreshRules, SourceSettings, convert, list_settings

from .errors import UsageError
from .service_levels import BusinessHours, ServiceLevels, TimeZone
from .workspace import configuration_folder

ACCOUNT_NAME = re.compile(r"[a-z](?:_?[a-z0-9])*")
# PostgreSQL truncates the name of a schema to 63 bytes.
MAX_ACCOUNT_LETTERS = 40
MAX_SCHEMA_LETTERS = 63
DataTests = Literal["hold", "publish", "off"]


Size = Annotated[
    str, Meta(pattern=r"^(none|\d+(\.\d+)?[KMGT]i?B)$", description='a size like "512MB", or "none" for DuckDB\'s own')
]
Seconds = Annotated[int, Meta(ge=0, description="a whole number of seconds, or 0 for no limit")]
SparkSettings = Annotated[
    dict[str, str | int | float | bool], Meta(description='settings of Spark, like "spark.master" = "..."')
]
SignedContent = Annotated[
    str, Meta(pattern=r"\{body\}", description='a text with {body} in it, like "{id}.{timestamp}.{body}"')
]
# Words of SQL, which would have to be quoted everywhere.
RESERVED = "all|default|end|group|order|primary|references|select|show|table|union|unique|user|window|with"
SchemaName = Annotated[
    str,
    Meta(
        pattern=rf"^(?!pg_|(?:{RESERVED})$)(?!.*_msgbubbles$){ACCOUNT_NAME.pattern}$",
        max_length=40,
        description="a name of at most 40 lowercase letters and digits, with _ between them, that does not start with "
        "pg_ or end with _msgbubbles",
    ),
]
UrlPath = Annotated[str, Meta(pattern="^/", description='a path like "/" or "/msgbubbles"')]


class SyncSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[sync]`: how much is loaded at once, and how it is published."""

    batch_pages: Annotated[int, Meta(ge=MIN_BATCH_PAGES)] = 500
    publish_minutes: Annotated[int, Meta(ge=1)] = 60
    run_days: Annotated[int, Meta(ge=0, le=100_000, description="a whole number of days, or 0 for no limit")] = 0
    memory_limit: Size = "none"
    lock_timeout_seconds: Seconds = 60
    statement_timeout_seconds: Seconds = 3600
    raw_schema: SchemaName = "msgbubbles"
    staging_schema: SchemaName = "staging"
    marts_schema: SchemaName = "marts"

    @property
    def schema_names(self) -> dict[str, str]:
        """The names of the schemas without the prefix of an account, by their default names."""
        return {
            "msgbubbles": self.raw_schema,
            "msgbubbles_staging": f"{self.raw_schema}_staging",
            "staging": self.staging_schema,
            "marts_build": f"{self.marts_schema}_build",
            "marts": self.marts_schema,
        }


class TransformSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[transforms]`: how the marts are built."""

    time_zone: TimeZone = "UTC"
    session_gap_hours: Annotated[float, Meta(gt=0)] = 24.0
    close_after_days: Annotated[int, Meta(ge=0, description="a whole number of days, or 0 for never")] = 0
    business_hours: BusinessHours = BusinessHours()
    sla: ServiceLevels = ServiceLevels()
    contact_aliases: str = ""
    data_tests: DataTests = "hold"
    full_tests_hours: Annotated[float, Meta(ge=0)] = 24.0
    planned_runs: bool = True
    spark: SparkSettings = {}


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[groups]`: which groups should exist."""

    table: str | None = None


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[webhooks]`: where events are received, and how they are signed. Names of headers are in lower case."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8484
    path: UrlPath = "/"
    signature_header: str = "webhook-signature"
    timestamp_header: str = "webhook-timestamp"
    id_header: str = "webhook-id"
    signed_content: SignedContent = "{id}.{timestamp}.{body}"
    digest: Literal["sha256", "sha512", "sha1"] = "sha256"
    tolerance_seconds: Annotated[float, Meta(gt=0)] = 300.0
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 1_048_576
    refresh_messages: RefreshRules | None = None

    def __post_init__(self) -> None:
        for name in ("signature_header", "timestamp_header", "id_header"):
            msgspec.structs.force_setattr(self, name, getattr(self, name).lower())


@dataclass(frozen=True)
class Settings:
    """All settings, checked.

    `webhook_secrets` do not change while a receiver runs; null if a file has them, which the receiver reads again.
    `placeholder` is the error message if the API key is a placeholder.
    """

    source: SourceSettings = field(default_factory=SourceSettings)
    sync: SyncSettings = field(default_factory=SyncSettings)
    transforms: TransformSettings = field(default_factory=TransformSettings)
    groups: GroupSettings = field(default_factory=GroupSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    policy: Policy = FULL
    preset: str = "full"
    vault: Path | None = None
    api_key: str = field(default="", repr=False)
    privacy_key: str | None = field(default=None, repr=False)
    webhook_secrets: tuple[str, ...] | None = field(default=None, repr=False)
    placeholder: str | None = None

    def describe_policy(self) -> str:
        """Describe the privacy policy: its preset, and the settings that differ from it."""
        preset = PRESETS[self.preset]
        own = [
            f"{name} = {json.dumps(value)}"
            for name, value in msgspec.structs.asdict(self.policy).items()
            if value != getattr(preset, name)
        ]
        meaning = ", everything is stored" if self.policy == FULL else ""
        return f"{self.preset}{' with ' if own else ''}{', '.join(own)}{meaning}"


Secrets = Annotated[
    tuple[Annotated[str, Meta(min_length=1)], ...], Meta(description='a list of texts like ["whsec_..."]')
]
OWN: dict[str, dict[str, Any]] = {
    "groups": list_settings(GroupSettings),
    "sync": list_settings(SyncSettings),
    "transforms": {
        **list_settings(TransformSettings),
        "business_hours": list_settings(BusinessHours),
        "sla": list_settings(ServiceLevels),
    },
    "webhooks": {**list_settings(WebhookSettings), "secrets": Secrets | Text},
}
API_KEY, PRIVACY_KEY = (*SOURCE_KEY, "api_key"), (*SOURCE_KEY, "privacy", "key")
SCHEMA_KEYS = {("sync", name) for name in ("raw_schema", "staging_schema", "marts_schema")}
SECRETS = (API_KEY, PRIVACY_KEY, ("webhooks", "secrets"))
PLACEHOLDER = re.compile(r"(sk|whsec)?_?(live|test)?_?(\.{2,}|…|x+|\*+|<.*>|your.*key.*)", re.IGNORECASE)

# Settings of earlier releases, and what to do about them.
FORMER = {
    **SOURCE_SCHEMA.former,
    ("sync", "slice_pages"): "Rename it to batch_pages.",
    ("sync", "parallel_accounts"): (
        "Remove it: accounts run one process after another. To run several at once, use one cron line per account with "
        "--account NAME."
    ),
    ("sync", "table_format"): (
        "Remove it: a folder of Delta tables is read again into Parquet. For an open format with merges use "
        "--destination ducklake."
    ),
}
SCHEMA = Schema({**SOURCE_SCHEMA.tree, **OWN}, SOURCE_KEY, FORMER)


def load_settings(account: str | None = None) -> Settings:
    """Load the settings, or those of an account. Raises `ConfigurationError`, which says what to fix where."""
    values = list(_read_values(account))
    shared = {value.key: value for value in values if value.account is None}
    if account is None:
        return _check_schemas(_build(shared, {}), "")
    shared.pop(API_KEY, None)  # an account without a key must not read another one
    own = {value.key: value for value in values if value.account == account}
    for key in SCHEMA_KEYS & own.keys():
        raise UsageError(f"{_name(own[key])} applies to all accounts. Move it to [sync].")
    return _check_schemas(_build(shared, own), f"{account}_")


def _check_schemas(settings: Settings, prefix: str) -> Settings:
    """Return the settings. Raises `UsageError` if two schemas are ambiguous, or a name is too long."""
    names = settings.sync.schema_names
    for name in names.values():
        if len(prefix + name) > MAX_SCHEMA_LETTERS:
            raise UsageError(
                f"[sync]: the schema {prefix}{name} has more than {MAX_SCHEMA_LETTERS} letters. Shorten it."
            )
    # The part before `_` would look like an account.
    shown = [name for schema, name in names.items() if schema != "msgbubbles_staging"]
    is_ambiguous = any(one != other and one.endswith(f"_{other}") for one in shown for other in shown)
    if is_ambiguous or len({*names.values()}) < len(names) or f"_{prefix}".endswith(f"_{settings.sync.raw_schema}_"):
        raise UsageError(
            "[sync]: raw_schema, staging_schema and marts_schema contradict each other: their schemas would be "
            f"{', '.join(names.values())}. Choose names of which none is the end of another, or of an account."
        )
    return settings


def read_webhook_secrets(path: Path) -> tuple[str, ...]:
    """Read `secrets` of the section `[webhooks]` of a file. Raises `ConfigurationError`."""
    section = read_toml(path).get("webhooks", {})
    if not isinstance(section, dict):
        raise UsageError(f"{path}: webhooks is a section. Write it as [webhooks].")
    return _convert_secrets(section.get("secrets", ()), lambda: str(path))


def list_account_names() -> list[str]:
    """Return the names of the configured accounts, in order.

    Raises `ConfigurationError` if what all accounts share is invalid; an invalid value of one account stops no other.
    """
    for _ in _read_values():
        pass
    names = {*filter(None, map(find_account, os.environ))}
    for file in FILES:
        names |= read_toml(configuration_folder() / file).get("accounts", {}).keys()
    for name in names:
        # PostgreSQL reserves names that start with pg_; others would look like schemas of dlt.
        is_reserved = f"{name}_".startswith("pg_") or name.endswith("msgbubbles")
        if not ACCOUNT_NAME.fullmatch(name) or len(name) > MAX_ACCOUNT_LETTERS or is_reserved:
            raise UsageError(
                f"[accounts.{name}]: the name of an account has at most {MAX_ACCOUNT_LETTERS} lowercase letters and "
                "digits, with _ between them; it starts with a letter but not with pg_, and does not end with "
                "msgbubbles. Choose another"
            )
    return sorted(names)


def _read_values(account: str | None = None) -> Iterator[Value]:
    """Yield every value that is set for all accounts and for one.

    Raises `ConfigurationError`, also if one is in the wrong file.
    """
    for value in read_values(SCHEMA, configuration_folder(), account=account):
        if value.file == "config.toml" and value.key in SECRETS:
            raise UsageError(f"{_name(value)} is a secret: move it from config.toml to dlt_config/secrets.toml")
        if value.file == "secrets.toml" and value.key[:-1] == PRIVACY_KEY[:-1] and value.key != PRIVACY_KEY:
            # The whole policy is in one file, so that nobody overlooks a part of it.
            raise UsageError(f"{_name(value)} is no secret: move it from secrets.toml to dlt_config/config.toml")
        yield value


def _name(value: Value) -> str:
    section, name = value.key[:-1], value.key[-1]
    if value.account is not None:
        is_source = section[: len(SOURCE_KEY)] == SOURCE_KEY
        section = ("accounts", value.account, *(section[len(SOURCE_KEY) :] if is_source else section))
    return f"{value.where()}: [{'.'.join(section)}] {name}"


def _build(shared: dict[Key, Value], own: dict[Key, Value]) -> Settings:
    """Build the settings from the values for all accounts and those for one."""
    values = shared | own
    by_section: dict[Key, dict[str, Any]] = {}
    for key, value in values.items():
        by_section.setdefault(key[:-1], {})[key[-1]] = value.value
    source = by_section.get(SOURCE_KEY, {})
    api_key = source.pop("api_key", "")
    privacy = by_section.get((*SOURCE_KEY, "privacy"), {})
    webhooks = by_section.get(("webhooks",), {})
    webhooks.pop("secrets", None)
    try:
        policy = parse_policy(privacy)
    except ConfigurationError as error:  # two settings contradict each other
        last = list(privacy)[-1]
        raise UsageError(f"{values[(*SOURCE_KEY, 'privacy', last)].where()}: {error}") from None
    vault = privacy.get("vault")
    return Settings(
        source=SourceSettings(**source),
        sync=SyncSettings(**by_section.get(("sync",), {})),
        transforms=TransformSettings(
            **by_section.get(("transforms",), {}),
            business_hours=BusinessHours(**by_section.get(("transforms", "business_hours"), {})),
            sla=ServiceLevels(**by_section.get(("transforms", "sla"), {})),
        ),
        groups=GroupSettings(**by_section.get(("groups",), {})),
        webhooks=WebhookSettings(**webhooks),
        policy=policy,
        preset=privacy.get("preset", "full"),
        vault=configuration_folder().parent / Path(vault).expanduser() if vault else None,
        api_key=api_key,
        privacy_key=privacy.get("key"),
        webhook_secrets=_find_fixed_secrets(shared, own),
        placeholder=_describe_placeholder(values.get(API_KEY)),
    )


def _find_fixed_secrets(shared: dict[Key, Value], own: dict[Key, Value]) -> tuple[str, ...] | None:
    """Return the secrets of an account or of the environment; those of a file for all accounts may change."""
    value = own.get(("webhooks", "secrets")) or shared.get(("webhooks", "secrets"))
    if value is None or (value.file is not None and value.account is None):
        return None
    return _convert_secrets(value.value, value.where)


def _convert_secrets(value: Any, where: Callable[[], str]) -> tuple[str, ...]:
    """Convert secrets: a list, a list as JSON, or a single one."""
    is_alone = isinstance(value, str) and not value.lstrip().startswith("[")
    try:
        return tuple(convert("[webhooks] secrets", (value,) if is_alone else value, Secrets))
    except ConfigurationError as error:
        raise UsageError(f"{where()}: {error}.") from None


def _describe_placeholder(api_key: Value | None) -> str | None:
    if api_key is None or not PLACEHOLDER.fullmatch(api_key.value.strip()):
        return None
    return f"{api_key.where()}: api_key is a placeholder. Replace it with the key of your account."
