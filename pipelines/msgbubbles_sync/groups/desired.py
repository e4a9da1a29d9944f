"""Read and validate the desired table: a CSV or YAML file, a query on the warehouse, or a dbt model.

Columns: `key` (stable and unique), `from_handle` (one of the account's numbers), `addresses` (2 to 31, as a list, or as
text separated by commas, semicolons or line breaks), `message` (sent once, when the group is created), and optionally
`title` (at most 100 characters; without one the title is left alone). Other columns are ignored. Deviations with only
one meaning are accepted: column names in any case, semicolons or tabs in a CSV, empty rows. Ambiguous input is refused
with its file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import yaml

from msgbubbles.handles import fold_handle, parse_handle
from msgbubbles.policy import PSEUDONYM
from msgbubbles_sync.context import Context
from msgbubbles_sync.csv_rows import check_columns, fold_column, read_csv, read_text
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.sql import quote_name
from msgbubbles_sync.text import escape, format_count

from .model import MAX_MEMBERS, MAX_TITLE, MIN_MEMBERS, DesiredGroup

REQUIRED = ("key", "from_handle", "addresses", "message")
COLUMNS = frozenset({*REQUIRED, "title"})
PLAIN_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
TABLE_HELP = (
    "Pass a .csv, .yml or .sql file, a dbt model, or a query: "
    "groups.py plan 'SELECT key, from_handle, title, addresses, message FROM ...'."
)

Row = Mapping[str, Any]


class InvalidRowsError(UsageError):
    """The desired table has invalid rows. The message lists every fault by row and quotes no handle."""

    def __init__(self, faults: Sequence[str]) -> None:
        lines = "".join(f"\n  {fault}" for fault in faults)
        super().__init__(f"{format_count(len(faults), 'fault')} in the desired table; nothing was sent:{lines}")
        self.faults = tuple(faults)


# -- reading


def read_rows(table: str, context: Context) -> list[Row]:
    """Read the rows of a file, query or dbt model. Raises `UsageError`."""
    path = Path(table)
    readers: dict[str, Callable[[Path], list[Row]]] = {
        ".csv": lambda path: [row for _, row in read_csv(path, COLUMNS)],
        ".yml": _read_yaml,
        ".yaml": _read_yaml,
        ".sql": lambda path: _run_query(read_text(path), context),
    }
    if re.search(r"\s", table.strip()) and not path.is_file():
        return _run_query(table, context)
    if path.suffix in readers:
        return readers[path.suffix](path)
    if not re.fullmatch(r"(\w+\.)?\w+", table):
        raise UsageError(f"{table} is not a table. {TABLE_HELP}")
    return _read_model(table, context)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads scalars as text: in plain YAML, +14155550100 is a number and loses its +. Refuses repeated keys."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in PLAIN_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        check_columns((key.value for key in keys), COLUMNS, f"{self.name}:{node.start_mark.line + 1}", every=True)
        return node


def _read_yaml(path: Path) -> list[Row]:
    text = read_text(path)
    try:
        loader = _Loader(text)
        loader.name = str(path)  # for its errors
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line} is not valid YAML") from None
    rows = content.get("groups") if isinstance(content, dict) else content or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} is not a list of groups. Begin each group like `- key: north`.")
    return rows


def _run_query(query: str, context: Context) -> list[Row]:
    title = Path(context.destination.title).name
    with context.destination.open_tables() as database:
        try:
            result = database.execute(query)
            columns = [column[0] for column in result.description or ()]
            check_columns(columns, COLUMNS, "the query's columns")
            return [dict(zip(columns, row, strict=True)) for row in result.fetchall()]
        except (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException) as error:
            # These errors quote the query; others may quote rows.
            raise UsageError(f"the query cannot be run on {title}: {error}") from None
        except duckdb.Error as error:
            raise UsageError(f"the query failed on {title} ({type(error).__name__})") from None


def _read_model(name: str, context: Context) -> list[Row]:
    schema, _, model = name.rpartition(".")
    with context.destination.open_tables() as database:
        schemas = database.execute(
            "SELECT table_schema FROM information_schema.tables WHERE table_catalog = current_catalog() "
            "AND table_name = ? AND table_schema = coalesce(?, table_schema) "
            "ORDER BY table_schema <> 'marts', table_schema",
            (model, schema or None),
        ).fetchall()
    if not schemas:
        title = Path(context.destination.title).name
        raise UsageError(f"{title} has no table {name}. If it is a dbt model, build it first. {TABLE_HELP}")
    return _run_query(f"SELECT * FROM {quote_name(schemas[0][0])}.{quote_name(model)}", context)  # noqa: S608 - quoted


# -- validation


def validate_rows(
    rows: Sequence[Row], numbers: Collection[str] | None, redact_own_handle: Callable[[str], str] = str
) -> tuple[DesiredGroup, ...]:
    """Convert rows to groups, in their order. `numbers` are the account's own, redacted; null if unknown.

    Raises `UsageError` if there are no rows, and `InvalidRowsError` with all faults of all rows.
    """
    if not rows:
        raise UsageError("the desired table has no rows, which is probably a mistake; no group was changed")
    for number, row in enumerate(rows, 1):
        check_columns(row, COLUMNS, f"the desired table, row {number}")
    rows = [{fold_column(name): value for name, value in row.items()} for row in rows]
    missing = [name for name in REQUIRED if all(name not in row for row in rows)]
    if missing:
        others = {str(name) for row in rows for name in row} - COLUMNS
        hints = [f" Should {near[0]} be {name}?" for name in missing if (near := get_close_matches(name, others, 1))]
        needs = f"the desired table has no column {', '.join(missing)}; it needs {', '.join(REQUIRED)}."
        raise UsageError("".join([needs, *hints]))
    faults: list[str] = []
    groups = []
    for number, row in enumerate(rows, 1):
        group, row_faults = _parse_row(row, numbers, redact_own_handle)
        faults += [f"{name_row(number, group.key)}: {fault}" for fault in row_faults]
        groups.append(group)
    faults += check_unique([group.key for group in groups])
    if faults:
        raise InvalidRowsError(faults)
    return tuple(groups)


def name_row(number: int, key: str) -> str:
    return f"row {number} ({escape(key)})" if key else f"row {number}"


def check_key(key: str) -> list[str]:
    """Return what is wrong with the key of a row."""
    if not key:
        return ["key is missing"]
    return ["key has invisible characters; type it again"] if escape(key) != key else []


def check_unique(keys: Sequence[str]) -> list[str]:
    """Return which rows have the same key."""
    rows: dict[str, list[str]] = {}
    for number, key in enumerate(keys, 1):
        rows.setdefault(key, []).append(str(number))
    return [
        f"rows {', '.join(numbers)} ({escape(key)}) have the same key; each group needs its own"
        for key, numbers in rows.items()
        if key and len(numbers) > 1
    ]


def _parse_row(
    row: Row, numbers: Collection[str] | None, redact_own_handle: Callable[[str], str]
) -> tuple[DesiredGroup, list[str]]:
    faults = [
        f"{name} is a list; write it as text"
        for name in ("key", "from_handle", "title", "message")
        if isinstance(row.get(name), Mapping | list | tuple)
    ]
    if isinstance(row.get("addresses"), Mapping):
        faults.append("addresses is a mapping; write it as a list")
    key, message, title = (_text(row.get(name)) for name in ("key", "message", "title"))
    faults += check_key(key)
    if not message:
        faults.append("message is missing; a group is created by its first message")
    if len(title) > MAX_TITLE:
        faults.append(f"title has {len(title)} characters; {MAX_TITLE} are allowed")
    from_handle = parse_handle(_text(row.get("from_handle")))
    if from_handle is None:
        faults.append("from_handle is neither a phone number in E.164, for example +14155550100, nor an e-mail address")
    elif numbers is not None:
        ours = {fold_handle(number): number for number in numbers}.get(fold_handle(redact_own_handle(from_handle)))
        if ours is None:
            faults.append("from_handle is not one of the account's numbers; GET /v1/numbers lists them")
        elif not PSEUDONYM.fullmatch(ours):
            # The account's spelling.
            from_handle = ours
    addresses, address_faults = _parse_addresses(row.get("addresses"), from_handle)
    return DesiredGroup(key, from_handle or "", addresses, message, title or None), faults + address_faults


def _parse_addresses(value: Any, from_handle: str | None) -> tuple[tuple[str, ...], list[str]]:
    faults = []
    addresses: dict[str, str] = {}
    ours = None if from_handle is None else fold_handle(from_handle)
    for number, text in enumerate(_split_addresses(value), 1):
        handle = parse_handle(text)
        if handle is None:
            faults.append(
                f"address {number} is a pseudonym; use the number itself, from a table of your own"
                if PSEUDONYM.fullmatch(text)
                else f"address {number} is neither a phone number in E.164 (+ and country code) nor an e-mail address"
            )
            continue
        folded = fold_handle(handle)
        if folded in addresses:
            faults.append(f"address {number} is listed twice")
        if folded == ours:
            faults.append(f"address {number} is from_handle, which is always in the group")
        addresses.setdefault(folded, handle)
    count = len(addresses.keys() - {ours})
    if not faults and not MIN_MEMBERS <= count <= MAX_MEMBERS:
        faults.append(f"a group has {MIN_MEMBERS} to {MAX_MEMBERS} addresses, not {count}")
    return tuple(sorted(addresses.values())), faults


def _split_addresses(value: Any) -> list[str]:
    """Split addresses into a list, from a list or text."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                value = value.strip("[] ")
        if isinstance(value, str):
            value = re.split(r"[,;\t\r\n\u2028\u2029\u3001\uff0c\uff1b]", value)
    parts = value if isinstance(value, Iterable) and not isinstance(value, Mapping) else ()
    # YAML's `[*team, dora@example.com]` is a list within the list.
    flat = (item for part in parts for item in (part if isinstance(part, list | tuple) else (part,)))
    return [text for item in flat if (text := _text(item))]


def read_text_columns(row: Row, *names: str) -> list[str]:
    """Return the values of columns as text; empty where they are missing."""
    folded = {fold_column(name): value for name, value in row.items()}
    return [_text(folded.get(name)) for name in names]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
