"""The settings of the application, and the only place that reads them.

A value comes from `config.toml`, from `secrets.toml` or from the environment; a later one of these overrides an earlier
one, and those of `[accounts.NAME]` override all of them. What is not a setting is refused, so that no typing error
goes unnoticed. Imports no dlt, which takes seconds that a receiver after a crash does not have.
"""

from __future__ import annotations

import os
import re
import tomllib
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from msgbubbles.errors import ConfigurationError
from msgbubbles.policy import FULL, PRESETS, SECTION, Policy, policy_of
from msgbubbles.settings import MIN_BATCH_PAGES, RefreshRules, SourceSettings, convert, settings_in

from .errors import UsageError
from .workspace import ROOT

ACCOUNT_VARIABLE = "MSGBUBBLES_ACCOUNT"
ACCOUNT_NAME = re.compile(r"[a-z](?:_?[a-z0-9])*")
# PostgreSQL truncates the name of a schema to 63 bytes.
MAX_ACCOUNT_LETTERS = 40
DataTests = Literal["hold", "publish", "off"]
Path_ = tuple[str, ...]
# Where a value comes from: `dlt_config/config.toml:12`, or the name of a variable. Found only for a message.
Where = Callable[[Path_], str]


def is_time_zone(name: str) -> bool:
    """Return whether this machine's time zone database has a zone of this name."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


Size = Annotated[
    str, Meta(pattern=r"^(none|\d+(\.\d+)?[KMGT]i?B)$", description='a size like "512MB", or "none" for DuckDB\'s own')
]
Seconds = Annotated[int, Meta(ge=0, description="a whole number of seconds, or 0 for no limit")]
TimeZone = Annotated[str, Meta(description='a name like "Europe/Berlin" or "UTC"', extra={"check": is_time_zone})]
SparkSettings = Annotated[
    dict[str, str | int | float | bool], Meta(description='settings of Spark, like "spark.master" = "..."')
]
SignedContent = Annotated[
    str, Meta(pattern=r"\{body\}", description='a text with {body} in it, like "{id}.{timestamp}.{body}"')
]
UrlPath = Annotated[str, Meta(pattern="^/", description='a path like "/" or "/msgbubbles"')]


class SyncSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[sync]`: how much is loaded at once, and how it is published."""

    batch_pages: Annotated[int, Meta(ge=MIN_BATCH_PAGES)] = 500
    publish_minutes: Annotated[int, Meta(ge=1)] = 60
    memory_limit: Size = "none"
    lock_timeout_seconds: Seconds = 60
    statement_timeout_seconds: Seconds = 3600


class TransformSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[transforms]`: how the marts are built."""

    time_zone: TimeZone = "UTC"
    data_tests: DataTests = "hold"
    spark: SparkSettings = {}


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[groups]`: which groups should exist."""

    table: str | None = None


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[webhooks]`: where events are received, and how they are signed."""

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


@dataclass(frozen=True)
class Settings:
    """All settings, checked. `webhook_secrets` are those that do not change while a receiver runs; null where they are
    read from a file, which may change."""

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
    """Where the API key is the one of the example: what to say of it."""


Text = Annotated[str, Meta(description='text in quotes, like "..."')]
Secrets = Annotated[
    tuple[Annotated[str, Meta(min_length=1)], ...], Meta(description='a list of texts like ["whsec_..."]')
]
PRIVACY = {
    "preset": Literal[tuple(PRESETS)],
    "vault": Annotated[str, Meta(description="the path of a file")],
    "key": Text,
    **settings_in(Policy),
}
OWN: dict[str, dict[str, Any]] = {
    "groups": settings_in(GroupSettings),
    "sync": settings_in(SyncSettings),
    "transforms": settings_in(TransformSettings),
    "webhooks": {**settings_in(WebhookSettings), "secrets": Secrets | Text},
}
# Sections that [accounts.NAME] may have besides `privacy`; everything else in it configures the source.
ACCOUNT_SECTIONS = tuple(OWN)
SOURCE = {**settings_in(SourceSettings), "api_key": Text, "privacy": PRIVACY}
SCHEMA: dict[str, Any] = {"sources": {"msgbubbles": SOURCE}, **OWN}
SOURCE_PATH = ("sources", "msgbubbles")
API_KEY, PRIVACY_KEY = (*SOURCE_PATH, "api_key"), (*SOURCE_PATH, "privacy", "key")
SECRETS = (API_KEY, PRIVACY_KEY, ("webhooks", "secrets"))
PLACEHOLDER = re.compile(r"(sk|whsec)?_?(live|test)?_?(\.{2,}|…|x+|\*+|<.*>|your.*key.*)", re.IGNORECASE)
# Sections of dlt's own, at the top and, for one source, in [sources].
DLT_SECTIONS = (
    *("dashboard", "data_writer", "datasets", "dbt_cloud", "dbt_package_runner", "destination", "destinations"),
    *("extract", "load", "normalize", "pipelines", "providers", "runtime", "schema", "workspace"),
)

# What was a setting once, and what to do about it.
FORMER = {
    (*SOURCE_PATH, "settle_seconds"): "Rename it to lookback_seconds.",
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


def configuration_folder() -> Path:
    """Return the folder of the configuration, which is dlt's."""
    return Path(os.environ.get("DLT_PROJECT_DIR", str(ROOT)), os.environ.get("DLT_CONFIG_FOLDER", "dlt_config"))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; one that does not exist is empty. Raises `UsageError`, which quotes none of it."""
    return _parse(path, _read(path))


def load_settings(account: str | None = None) -> Settings:
    """Read the settings, those of an account if one is named. Raises `UsageError`, which says what to correct where."""
    given = list(_given())
    shared = {value.path: value for value in given if value.account is None}
    if account is None:
        return _build(shared, {})
    shared.pop(API_KEY, None)  # an account without a key must not read another one
    return _build(shared, {value.path: value for value in given if value.account == account})


def read_webhook_secrets(path: Path) -> tuple[str, ...]:
    """Read `secrets` of the section `[webhooks]` of a file. Raises `UsageError`."""
    section = read_toml(path).get("webhooks", {})
    if not isinstance(section, dict):
        raise UsageError(f"{path}: webhooks is a section. Write it as [webhooks].")
    return _secrets(section.get("secrets", ()), lambda: str(path))


def source_arguments(settings: Settings, privacy: Any) -> dict[str, Any]:
    """Return the arguments of the dlt source; `privacy` is a `Redactor`."""
    return {**msgspec.structs.asdict(settings.source), "api_key": settings.api_key, "privacy": privacy}


def account_names() -> list[str]:
    """Return the names of the configured accounts, in order. Raises `UsageError`."""
    names = {value.account for value in _given() if value.account is not None}
    for file in ("config.toml", "secrets.toml"):  # a section may be empty
        names |= read_toml(configuration_folder() / file).get("accounts", {}).keys()
    for name in names:
        # PostgreSQL keeps names that begin with pg_ for itself; others would be taken for schemas of dlt's.
        is_taken = f"{name}_".startswith("pg_") or name.endswith("msgbubbles")
        if not ACCOUNT_NAME.fullmatch(name) or len(name) > MAX_ACCOUNT_LETTERS or is_taken:
            raise UsageError(
                f"[accounts.{name}]: an account's name is of small letters and digits, with _ between them; it begins "
                "with a letter but not with pg_, does not end in msgbubbles, and has "
                f"{MAX_ACCOUNT_LETTERS} of them at most; choose another"
            )
    return sorted(names)


@dataclass(frozen=True)
class _Value:
    """A value as it is given, by its path without `accounts.NAME`."""

    path: Path_
    value: Any
    where: Callable[[], str]
    account: str | None
    is_from_file: bool


def _given() -> Iterator[_Value]:
    """Yield every value that is given, checked, the ones that override others last. Raises `UsageError`."""
    for name in ("config.toml", "secrets.toml"):
        path = configuration_folder() / name
        text = _read(path)
        tree = _parse(path, text)

        def where(key: Path_, path: Path = path, text: str = text) -> str:
            line = _line(text, key)
            return _shown(path) + (f":{line}" if line else "")

        for key, value, hint in _walk(tree, _schema(tree), (), where):
            found = _checked(key, value, hint, where, is_from_file=True)
            what = f"{where(key)}: [{'.'.join(key[:-1])}] {key[-1]}"
            if name == "config.toml" and found.path in SECRETS:
                raise UsageError(f"{what} is a secret: move it from config.toml to dlt_config/secrets.toml")
            if name == "secrets.toml" and found.path[:-1] == PRIVACY_KEY[:-1] and found.path != PRIVACY_KEY:
                # The policy is in one file, so that nobody misses half of it.
                raise UsageError(f"{what} is no secret: move it from secrets.toml to dlt_config/config.toml")
            yield found
    yield from _from_environment()


def _from_environment() -> Iterator[_Value]:
    for variable, text in os.environ.items():
        parts = tuple(variable.lower().split("__"))
        if len(parts) == 1 or parts[0] in DLT_SECTIONS or _is_of_another_source(parts):
            continue
        if parts[0] in (*SCHEMA, "accounts") and variable == variable.upper():
            yield from _from_variable(variable, parts, text)
        elif near := get_close_matches(variable.upper(), _variables(parts), 1, 0.85):
            raise UsageError(f"{variable} is not a setting. Did you mean {near[0]}?")


def _from_variable(variable: str, parts: Path_, text: str) -> Iterator[_Value]:
    def where(_key: Path_) -> str:
        return variable

    tree: Any = text
    for part in reversed(parts):
        tree = {part: tree}
    for key, value, hint in _walk(tree, _schema(tree), (), where):
        if isinstance(value, Mapping):  # a part too many
            raise UsageError(_unknown(parts, value, (), variable))
        yield _checked(key, value, hint, where, is_from_file=False)


def _is_of_another_source(parts: Path_) -> bool:
    """Return whether a variable is for another dlt source, which may share the environment with this one."""
    names = ("msgbubbles", *SOURCE, *PRIVACY)
    return parts[0] == "sources" and not get_close_matches(parts[1], names, 1, 0.75)


def _schema(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may be set where, with a section for each account that is in the tree."""
    accounts = tree.get("accounts", {})
    names = accounts if isinstance(accounts, dict) else ()
    return {**SCHEMA, "accounts": {name: {**SOURCE, **OWN} for name in names}}


def _walk(
    tree: Mapping[str, Any], schema: Mapping[str, Any], path: Path_, where: Where
) -> Iterator[tuple[Path_, Any, Any]]:
    """Yield each value of a tree with its path and its type. Raises `UsageError` for what is no setting."""
    for key, value in tree.items():
        here = (*path, key)
        if key not in schema:
            if key in DLT_SECTIONS and (path in ((), ("sources",), SOURCE_PATH)):
                continue
            raise UsageError(f"{_unknown(here, value, schema, where(here))}")
        if not isinstance(schema[key], dict):
            yield here, value, schema[key]
        elif isinstance(value, Mapping):
            yield from _walk(value, schema[key], here, where)
        else:
            raise UsageError(f"{where(here)}: {'.'.join(here)} is a section. Write it as [{'.'.join(here)}].")


def _checked(key: Path_, value: Any, hint: Any, where: Where, *, is_from_file: bool) -> _Value:
    account, path = _split(key)
    try:
        found = convert(f"[{'.'.join(key[:-1])}] {key[-1]}", value, hint)
    except ConfigurationError as error:
        raise UsageError(f"{where(key)}: {error}.") from None
    return _Value(path, found, lambda: where(key), account, is_from_file)


def _split(key: Path_) -> tuple[str | None, Path_]:
    """Split a path into the account it is for, and the path of the setting."""
    if key[0] != "accounts":
        return None, key
    rest = key[2:]
    return key[1], rest if rest[:1] and rest[0] in OWN else (*SOURCE_PATH, *rest)


def _unknown(path: Path_, value: Any, names: Iterable[str], where: str) -> str:
    """Say that something is no setting, and what may have been meant."""
    *section, key = path
    plain = _split(path)[1]
    is_variable = where in os.environ
    what = where if is_variable else f"{where}: [{'.'.join(section)}] {key}" if section else f"{where}: {key}"
    if plain in FORMER:
        return f"{what} is no longer supported. {FORMER[plain]}"
    if is_variable:
        near = get_close_matches(where, _variables(tuple(where.lower().split("__"))), 1)
    elif isinstance(value, Mapping):
        inner: Path_ = ()
        while len(value) == 1 and isinstance(next(iter(value.values())), Mapping):
            (name, value), *_ = value.items()
            inner = (*inner, name)
        what = f"{where}: [{'.'.join((*path, *inner))}] is not a section of this project or of dlt"
        near = get_close_matches(key, [*names, *(() if section else DLT_SECTIONS)], 1)
        near = [f"[{'.'.join((*section, name, *inner))}]" for name in near]
        return f"{what}. {_suggestion(near)}"
    else:
        near = get_close_matches(key, [name for name in names if name], 1)
        if not near:
            near = [f"[{name}] {key}" for name, keys in _sections().items() if key in keys]
    return f"{what} is not a setting. {_suggestion(near)}"


def _suggestion(near: list[str]) -> str:
    return f"Did you mean {near[0]}?" if near else "Correct or remove it; dlt_config/config.toml has all of them."


def _sections() -> dict[str, Mapping[str, Any]]:
    return {"sources.msgbubbles": SOURCE, SECTION: PRIVACY, **OWN, "transforms.spark": {}}


def _variables(parts: Path_) -> list[str]:
    """Return the name of every variable that is a setting; those of an account if that is what `parts` look like."""
    found = ["__".join((*name.split("."), key)).upper() for name, keys in _sections().items() for key in keys]
    if len(parts) > 2:
        inner = [name.removeprefix("SOURCES__MSGBUBBLES__") for name in found]
        found += [f"ACCOUNTS__{parts[1].upper()}__{name}" for name in inner]
    return found


def _build(shared: dict[Path_, _Value], own: dict[Path_, _Value]) -> Settings:
    """Build the settings from what is given for all accounts and for one."""
    values = shared | own
    by_section: dict[Path_, dict[str, Any]] = {}
    for path, value in values.items():
        by_section.setdefault(path[:-1], {})[path[-1]] = value.value
    source = by_section.get(SOURCE_PATH, {})
    api_key = source.pop("api_key", "")
    privacy = by_section.get((*SOURCE_PATH, "privacy"), {})
    webhooks = by_section.get(("webhooks",), {})
    webhooks.pop("secrets", None)
    try:
        policy = policy_of(privacy)
    except ConfigurationError as error:  # two settings that do not go together
        last = list(privacy)[-1]
        raise UsageError(f"{values[(*SOURCE_PATH, 'privacy', last)].where()}: {error}") from None
    vault = privacy.get("vault")
    return Settings(
        source=SourceSettings(**source),
        sync=SyncSettings(**by_section.get(("sync",), {})),
        transforms=TransformSettings(**by_section.get(("transforms",), {})),
        groups=GroupSettings(**by_section.get(("groups",), {})),
        webhooks=WebhookSettings(**webhooks),
        policy=policy,
        preset=privacy.get("preset", "full"),
        vault=configuration_folder().parent / Path(vault).expanduser() if vault else None,
        api_key=api_key,
        privacy_key=privacy.get("key"),
        webhook_secrets=_fixed_secrets(shared, own),
        placeholder=_placeholder(values.get(API_KEY)),
    )


def _fixed_secrets(shared: dict[Path_, _Value], own: dict[Path_, _Value]) -> tuple[str, ...] | None:
    """Return the secrets of an account or of the environment: those in a file for all may change."""
    given = own.get(("webhooks", "secrets")) or shared.get(("webhooks", "secrets"))
    if given is None or (given.is_from_file and given.account is None):
        return None
    return _secrets(given.value, given.where)


def _secrets(value: Any, where: Callable[[], str]) -> tuple[str, ...]:
    """Convert secrets: a list, the same as JSON, or only one."""
    is_alone = isinstance(value, str) and not value.lstrip().startswith("[")
    try:
        return tuple(convert("[webhooks] secrets", (value,) if is_alone else value, Secrets))
    except ConfigurationError as error:
        raise UsageError(f"{where()}: {error}.") from None


def _placeholder(api_key: _Value | None) -> str | None:
    if api_key is None or not PLACEHOLDER.fullmatch(api_key.value.strip()):
        return None
    return f"{api_key.where()}: api_key is the placeholder of an example. Put the key of your account there."


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}); mend it, or let the user of this job read it"
        ) from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"line {line[1]}" if line else "its end"
        raise UsageError(
            f"{path}: {where} is not TOML; mend it (text is in quotes, a section's name in brackets)"
        ) from None


def _shown(path: Path) -> str:
    """Return the path of a file as it is seen from the working folder."""
    with_cwd = path.absolute()
    return str(with_cwd.relative_to(Path.cwd()) if with_cwd.is_relative_to(Path.cwd()) else with_cwd)


def _line(text: str, key: Path_) -> int | None:
    """Return the number of the line that sets a key, or begins its section; null if it cannot be found."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if key[-1] not in line or line.lstrip().startswith("#"):
            continue
        for end in range(number, len(lines) + 1):  # a value may go on for several lines
            try:
                tree: Any = tomllib.loads("\n".join(lines[:end]))
            except tomllib.TOMLDecodeError:
                continue
            for part in key:
                tree = tree.get(part) if isinstance(tree, dict) else None
            if tree is not None:
                return number
            break
    return None
