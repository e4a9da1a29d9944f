"""Read the values of a schema from `config.toml`, `secrets.toml` and the environment, and refuse unknown keys.

The schema is a tree of sections; its leaves are the types of the settings. `SOURCE_SCHEMA` is that of the source.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from .errors import ConfigurationError
from .policy import PRESETS, Policy
from .settings import SourceSettings, convert, list_settings

FILES = ("config.toml", "secrets.toml")
# dlt's own sections, at the top level and, for one source, in [sources].
DLT_SECTIONS = (
    *("dashboard", "data_writer", "datasets", "dbt_cloud", "dbt_package_runner", "destination", "destinations"),
    *("extract", "load", "normalize", "pipelines", "providers", "runtime", "schema", "workspace"),
)
# A variable that is this similar to one of ours is misspelt; others belong to other programs.
MIN_VARIABLE_LIKENESS = 0.85

Key = tuple[str, ...]
Where = Callable[[Key], str]


@dataclass(frozen=True)
class Schema:
    """Declares what may be set.

    A section `[accounts.NAME]` may have other sections of `tree`; its other keys belong to the section `source`.
    `former` has the keys of earlier releases, with what to do about them.
    """

    tree: Mapping[str, Any]
    source: Key
    former: Mapping[Key, str] = field(default_factory=dict)

    @property
    def account(self) -> dict[str, Any]:
        """The tree of a section `[accounts.NAME]`."""
        source: Any = self.tree
        for part in self.source:
            source = source[part]
        return {**source, **{name: keys for name, keys in self.tree.items() if name != self.source[0]}}

    def with_accounts(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the tree with a section for each account."""
        return {**self.tree, "accounts": dict.fromkeys(names, self.account)}

    def split(self, key: Key) -> tuple[str | None, Key]:
        """Split a key into its account and the key without it."""
        if key[0] != "accounts":
            return None, key
        rest = key[2:]
        return key[1], rest if rest and rest[0] in self.tree else (*self.source, *rest)

    def find_elsewhere(self, name: str) -> list[str]:
        """Return the settings of this name, as `[section] name`."""
        return [f"[{'.'.join(key[:-1])}] {name}" for key in list_keys(self.tree) if key[-1] == name]

    def list_variables(self, parts: Key) -> list[str]:
        """Return the variables of all settings, and those of an account if `parts` are long enough to have one."""
        keys = list_keys(self.tree)
        if len(parts) > 2:
            keys += [("accounts", parts[1], *key) for key in list_keys(self.account)]
        return ["__".join(key).upper() for key in keys]


def list_keys(tree: Mapping[str, Any]) -> list[Key]:
    """Return the keys of all settings of a tree."""
    return [
        (name, *rest)
        for name, value in tree.items()
        for rest in (list_keys(value) if isinstance(value, dict) else [()])
    ]


@dataclass(frozen=True)
class Value:
    """A value that is set, and its key without `accounts.NAME`.

    `file` is null for a variable. `where` finds the line or the variable, for messages.
    """

    key: Key
    value: Any
    where: Callable[[], str]
    account: str | None
    file: str | None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a missing file is empty. Raises `ConfigurationError`, which quotes nothing of it."""
    return _parse(path, _read(path))


def read_values(schema: Schema, folder: Path, section: Key = (), account: str | None = None) -> Iterator[Value]:
    """Yield every value that is set (in one section), converted; a later one overrides an earlier one.

    Those of other accounts than `account` are left out. Raises `ConfigurationError`.
    """
    for name in FILES:
        path = folder / name
        text = _read(path)
        tree = _select(_parse(path, text), section)

        def find(key: Key, path: Path = path, text: str = text) -> str:
            line = find_line(text, key)
            return _display(path) + (f":{line}" if line else "")

        accounts = tree.get("accounts", {})
        if isinstance(accounts, dict):
            tree = {**tree, "accounts": {name: own for name, own in accounts.items() if name == account}}
        whole = schema.with_accounts((account,) if account else ())
        for key, value, hint in _walk(schema, tree, whole, (), find):
            yield _check(schema, key, value, hint, find, name)
    for variable, text in os.environ.items():
        parts = tuple(variable.lower().split("__"))
        if parts[: len(section)] == section and find_account(variable) in (None, account):
            yield from _read_variable(schema, variable, text)


def find_account(variable: str) -> str | None:
    """Return the account that an environment variable configures; null if it does not name one."""
    parts = variable.split("__")
    return parts[1].lower() if parts[0] == "ACCOUNTS" and len(parts) > 2 and variable == variable.upper() else None


def _select(tree: Mapping[str, Any], section: Key) -> Mapping[str, Any]:
    """Return a tree with only one section."""
    if not section:
        return tree
    inner = tree.get(section[0])
    return {section[0]: _select(inner, section[1:])} if isinstance(inner, Mapping) else {}


def _read_variable(schema: Schema, variable: str, text: str) -> Iterator[Value]:
    parts = tuple(variable.lower().split("__"))
    if len(parts) == 1 or parts[0] in DLT_SECTIONS or _is_of_another_source(schema, parts):
        return
    if parts[0] not in (*schema.tree, "accounts") or variable != variable.upper():
        near = get_close_matches(variable.upper(), schema.list_variables(parts), 1, MIN_VARIABLE_LIKENESS)
        if near:
            raise ConfigurationError(f"{variable} is not a setting. {_suggest(near)}")
        return

    def find(_key: Key) -> str:
        return variable

    tree: Any = text
    for part in reversed(parts):
        tree = {part: tree}
    for key, value, hint in _walk(schema, tree, schema.with_accounts(tree.get("accounts", ())), (), find):
        if isinstance(value, Mapping):  # the name has a part too many
            raise ConfigurationError(_describe_unknown(schema, parts, value, (), variable))
        yield _check(schema, key, value, hint, find, None)


def _is_of_another_source(schema: Schema, parts: Key) -> bool:
    """Return whether a variable belongs to another dlt source, which may share the environment."""
    if parts[0] != schema.source[0]:
        return False
    names = {part for key in list_keys({schema.source[0]: schema.tree[schema.source[0]]}) for part in key[1:]}
    return not get_close_matches(parts[1], names, 1, 0.75)


def _walk(
    schema: Schema, values: Mapping[str, Any], tree: Mapping[str, Any], section: Key, find: Where
) -> Iterator[tuple[Key, Any, Any]]:
    """Yield each value with its key and its type. Raises `ConfigurationError` for an unknown key."""
    for name, value in values.items():
        key = (*section, name)
        if name not in tree:
            if name in DLT_SECTIONS and section in ((), schema.source[:1], schema.source):
                continue
            raise ConfigurationError(_describe_unknown(schema, key, value, tree, find(key)))
        if not isinstance(tree[name], dict):
            yield key, value, tree[name]
        elif isinstance(value, Mapping):
            yield from _walk(schema, value, tree[name], key, find)
        else:
            raise ConfigurationError(f"{find(key)}: {'.'.join(key)} is a section. Write it as [{'.'.join(key)}].")


def _check(schema: Schema, key: Key, value: Any, hint: Any, find: Where, file: str | None) -> Value:
    account, plain = schema.split(key)
    try:
        converted = convert(f"[{'.'.join(key[:-1])}] {key[-1]}", value, hint)
    except ConfigurationError as error:
        raise ConfigurationError(f"{find(key)}: {error}.") from None
    return Value(plain, converted, lambda: find(key), account, file)


def _describe_unknown(schema: Schema, key: Key, value: Any, names: Iterable[str], where: str) -> str:
    """Describe an unknown key, and suggest a similar one. `names` are the keys of its section."""
    *section, name = key
    is_variable = where in os.environ
    header = f"[{'.'.join(section)}] " if section else ""
    what = where if is_variable else f"{where}: {header}{name}"
    plain = schema.split(key)[1]
    if plain in schema.former:
        return f"{what} is no longer supported. {schema.former[plain]}"
    if is_variable:
        near = get_close_matches(where, schema.list_variables(tuple(where.lower().split("__"))), 1)
    elif isinstance(value, Mapping):
        inner: Key = ()
        while len(value) == 1 and isinstance(next(iter(value.values())), Mapping):
            (part, value), *_ = value.items()
            inner = (*inner, part)
        near = get_close_matches(name, [*names, *(() if section else DLT_SECTIONS)], 1)
        near = [f"[{'.'.join((*section, match, *inner))}]" for match in near]
        return f"{where}: [{'.'.join((*key, *inner))}] is not a section of this project or of dlt. {_suggest(near)}"
    else:
        near = get_close_matches(name, names, 1) or schema.find_elsewhere(name)
    return f"{what} is not a setting. {_suggest(near)}"


def _suggest(near: list[str]) -> str:
    return f"Did you mean {near[0]}?" if near else "Correct or remove it; dlt_config/config.toml has all of them."


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({type(error).__name__}); fix it, or give the user of this job access"
        ) from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f":{line[1]}" if line else ", at its end,"
        raise ConfigurationError(
            f"{_display(path)}{where} is not TOML. Put text in quotes, and names of sections in brackets."
        ) from None


def _display(path: Path) -> str:
    """Return the path of a file, relative to the working directory if it is in there."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def find_line(text: str, key: Key) -> int | None:
    """Return the number of the line that sets a key, or starts its section; null if missing."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if key[-1] not in line or line.lstrip().startswith("#"):
            continue
        for end in range(number, len(lines) + 1):  # a value may span several lines
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


# The settings of the source.
Text = Annotated[str, Meta(description='text in quotes, like "..."')]
SOURCE_KEY = ("sources", "msgbubbles")
PRIVACY = {
    "preset": Literal[tuple(PRESETS)],
    "vault": Annotated[str, Meta(description="the path of a file")],
    "key": Text,
    **list_settings(Policy),
}
SOURCE = {**list_settings(SourceSettings), "api_key": Text, "privacy": PRIVACY}
FORMER: dict[Key, str] = {(*SOURCE_KEY, "settle_seconds"): "Rename it to lookback_seconds."}
SOURCE_SCHEMA = Schema({"sources": {"msgbubbles": SOURCE}}, SOURCE_KEY, FORMER)
