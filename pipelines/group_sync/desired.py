"""The desired table: which groups there should be. From a query on the warehouse, a dbt model, a CSV or a YAML file.

Columns: `key` (stable, unique: what a group is called here), `from_handle` (one of the account's numbers), `addresses`
(2 to 31, as a list, or as text with commas, semicolons or line breaks between), `message` (sent once, when the group is
created), and, if it likes, `title` (100 characters at most; without one the title is left alone). Other columns are
ignored.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from msgbubbles.handles import handle_of
from msgbubbles.privacy import PSEUDONYM
from warehouse.destinations import destination_of
from warehouse.names import named
from warehouse.place import Place, UsageError

from .model import MAX_MEMBERS, MAX_TITLE, MIN_MEMBERS, DesiredGroup

REQUIRED = ("key", "from_handle", "addresses", "message")
WHAT_A_TABLE_IS = (
    "name a .csv, .yml or .sql file, a dbt model, or write a query: "
    "groups.py plan 'SELECT key, from_handle, title, addresses, message FROM ...'"
)

Row = Mapping[str, Any]


class InvalidRowsError(UsageError):
    """The desired table cannot be brought about. The message lists every fault, by row, and quotes no handle."""

    def __init__(self, faults: Sequence[str]) -> None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
        super().__init__(f"{count} in the desired table; nothing was sent:\n" + "\n".join(f"  {one}" for one in faults))
        self.faults = tuple(faults)


# -- where the rows come from


def rows_of(table: str, place: Place) -> list[Row]:
    """The rows of a table, wherever it is. Raises `UsageError`."""
    path = Path(table)
    readers: dict[str, Callable[[Path], list[Row]]] = {".csv": _csv_rows, ".yml": _yaml_rows, ".yaml": _yaml_rows}
    if re.search(r"\s", table.strip()) and not path.is_file():
        return _query_rows(table, place)
    if path.suffix in (*readers, ".sql"):
        try:
            return readers[path.suffix](path) if path.suffix in readers else _query_rows(path.read_text(), place)
        except OSError as error:
            raise UsageError(f"{table} cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise UsageError(f"{table} is not UTF-8 text; save it as UTF-8") from None
    if not re.fullmatch(r"(\w+\.)?\w+", table):
        raise UsageError(f"{table}: not a table; {WHAT_A_TABLE_IS}")
    return _model_rows(table, place)


def _csv_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        except csv.Error:
            raise UsageError(f"{path} is not a CSV file; put texts with commas or line breaks in quotes") from None
    for number, row in enumerate(rows, 1):
        if None in row:
            raise UsageError(
                f"{path}, row {number}: more fields than columns; put texts with commas, as addresses, in quotes"
            )
    return list(rows)


def _yaml_rows(path: Path) -> list[Row]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Texts as they are written: in plain YAML +14155550100 is a number, and loses its +."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        content = yaml.load(path.read_text(), Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{at} is not YAML") from None
    rows = content.get("groups") if isinstance(content, dict) else content or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} is not a list of groups; each begins like `- key: north`")
    return rows


def _query_rows(query: str, place: Place) -> list[Row]:
    if not place.database.exists():
        raise UsageError(f"{place.database} is not there to be asked; run chats.py first")
    with destination_of(place).reading() as database:
        try:
            result = database.execute(query)
            columns = [column[0] for column in result.description or ()]
            return [dict(zip(columns, row, strict=True)) for row in result.fetchall()]
        except (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException) as error:
            # These speak of the query, not of rows.
            raise UsageError(f"the query cannot be run on {place.database.name}: {error}") from None
        except duckdb.Error as error:
            raise UsageError(f"the query failed on {place.database.name} ({type(error).__name__})") from None


def _model_rows(name: str, place: Place) -> list[Row]:
    schema, _, model = name.rpartition(".")
    if not place.database.exists():
        raise UsageError(f"{place.database} is not there to be asked for {name}; run chats.py first")
    with destination_of(place).reading() as database:
        found = database.execute(
            "SELECT table_schema FROM information_schema.tables WHERE table_name = ? AND table_schema = coalesce(?, "
            "table_schema) ORDER BY table_schema <> 'marts', table_schema",
            (model, schema or None),
        ).fetchall()
    if not found:
        raise UsageError(f"{place.database.name} has no table {name}: build the dbt model first; or {WHAT_A_TABLE_IS}")
    return _query_rows(f"SELECT * FROM {named(found[0][0])}.{named(model)}", place)  # noqa: S608 - they are quoted


# -- what has to be true of them


def validated(
    rows: Sequence[Row], numbers: Collection[str] | None, disguised: Callable[[str], str] = str
) -> tuple[DesiredGroup, ...]:
    """The rows as groups, in their order. `numbers` are the account's own, in disguise; null where they are not known.
    Raises `UsageError` when there are no rows, `InvalidRowsError` with all faults of all rows."""
    if not rows:
        raise UsageError("the desired table has no rows, which is taken for a mistake; no group was touched")
    missing = [name for name in REQUIRED if all(name not in row for row in rows)]
    if missing:
        raise UsageError(f"the desired table has no column {', '.join(missing)}; it needs {', '.join(REQUIRED)}")
    faults: list[str] = []
    groups = []
    for number, row in enumerate(rows, 1):
        group, found = _group_of(row, numbers, disguised)
        name = f"row {number} ({group.key})" if group.key else f"row {number}"
        faults += [f"{name}: {fault}" for fault in found]
        groups.append(group)
    counts = Counter(group.key for group in groups if group.key)
    for key, count in counts.items():
        if count > 1:
            same = [str(number) for number, group in enumerate(groups, 1) if group.key == key]
            faults.append(f"rows {', '.join(same)} ({key}): the same key; each group has its own")
    if faults:
        raise InvalidRowsError(faults)
    return tuple(groups)


def _group_of(
    row: Row, numbers: Collection[str] | None, disguised: Callable[[str], str]
) -> tuple[DesiredGroup, list[str]]:
    faults = []
    key, message, title = (_text(row.get(name)) for name in ("key", "message", "title"))
    if not key:
        faults.append("key is missing")
    if not message:
        faults.append("message is missing; the first message is what establishes a group")
    if len(title) > MAX_TITLE:
        faults.append(f"title has {len(title)} characters; {MAX_TITLE} are allowed")
    from_handle = handle_of(_text(row.get("from_handle")))
    if from_handle is None:
        faults.append("from_handle is neither a number in E.164 form (like +14155550100) nor an e-mail address")
    elif numbers is not None and disguised(from_handle) not in numbers:
        faults.append("from_handle is not one of the account's numbers; GET /v1/numbers lists them")
    addresses, found = _addresses_of(row.get("addresses"), from_handle)
    return DesiredGroup(key, from_handle or "", addresses, message, title or None), faults + found


def _addresses_of(value: Any, from_handle: str | None) -> tuple[tuple[str, ...], list[str]]:
    faults = []
    addresses: list[str] = []
    for number, written in enumerate(_listed(value), 1):
        handle = handle_of(written)
        if handle is None:
            faults.append(
                f"address {number} is a pseudonym; take the numbers themselves from a table of your own"
                if PSEUDONYM.fullmatch(written)
                else f"address {number} is neither a number in E.164 form (+ and country code) nor an e-mail address"
            )
            continue
        if handle in addresses:
            faults.append(f"address {number} is there twice")
        if handle == from_handle:
            faults.append(f"address {number} is from_handle, which is in the group anyway")
        addresses.append(handle)
    count = len(set(addresses) - {from_handle})
    if not faults and not MIN_MEMBERS <= count <= MAX_MEMBERS:
        faults.append(f"a group has {MIN_MEMBERS} to {MAX_MEMBERS} addresses, not {count}")
    return tuple(sorted(set(addresses))), faults


def _listed(value: Any) -> list[str]:
    """Addresses as a list, from a list or from text."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                value = value.strip("[] ")
        if isinstance(value, str):
            value = re.split(r"[,;\n]", value)
    return [text for one in (value if isinstance(value, Iterable) else ()) if (text := _text(one))]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
