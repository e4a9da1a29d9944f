"""The desired table: which groups there should be. From a query on the warehouse, a dbt model, a CSV or a YAML file.

Columns: `key` (stable, unique: what a group is called here), `from_handle` (one of the account's numbers), `addresses`
(2 to 31, as a list, or as text with commas, semicolons or line breaks between), `message` (sent once, when the group is
created), and, if it likes, `title` (100 characters at most; without one the title is left alone). Other columns are
ignored. What can be understood in one way only is read, however it is written: columns in any case, a CSV with
semicolons or tabs, empty rows. What can be understood in two ways is refused, with its file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from msgbubbles.handles import fold_handle, parse_handle
from msgbubbles.policy import PSEUDONYM
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.sql import quote_name
from msgbubbles_sync.workspace import Workspace

from .display import escape
from .model import MAX_MEMBERS, MAX_TITLE, MIN_MEMBERS, DesiredGroup

REQUIRED = ("key", "from_handle", "addresses", "message")
COLUMNS = frozenset({*REQUIRED, "title"})
DELIMITERS = ",;\t|"
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


def read_rows(table: str, workspace: Workspace) -> list[Row]:
    """The rows of a table, wherever it is. Raises `UsageError`."""
    path = Path(table)
    readers: dict[str, Callable[[Path], list[Row]]] = {".csv": _csv_rows, ".yml": _yaml_rows, ".yaml": _yaml_rows}
    if re.search(r"\s", table.strip()) and not path.is_file():
        return _query_rows(table, workspace)
    if path.suffix in (*readers, ".sql"):
        try:
            return readers[path.suffix](path) if path.suffix in readers else _query_rows(_text_in(path), workspace)
        except OSError as error:
            raise UsageError(f"{table} cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise UsageError(f"{table} is not UTF-8 text; save it as UTF-8") from None
    if not re.fullmatch(r"(\w+\.)?\w+", table):
        raise UsageError(f"{table}: not a table; {WHAT_A_TABLE_IS}")
    return _model_rows(table, workspace)


def _text_in(path: Path) -> str:
    text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        raise UsageError(f"{path} is not UTF-8 text; save it as UTF-8")
    return text


def _csv_rows(path: Path) -> list[Row]:
    text = _text_in(path)
    # Spreadsheets name the delimiter in a line of its own.
    named = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)
    text, first_line = (text[named.end() :], 2) if named else (text, 1)
    reader = csv.reader(
        io.StringIO(text, newline=""), strict=True, skipinitialspace=True, delimiter=_delimiter_of(text)
    )
    rows: list[Row] = []
    header: list[str] | None = None
    while True:
        line = first_line + reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error:
            raise UsageError(
                f"{path}, line {line} is not CSV; put texts with commas or line breaks in quotes"
            ) from None
        if fields is None:
            return rows
        if not any(field.strip() for field in fields):
            continue
        if header is None:
            header = fields
            _check_columns(header, f"{path}, line {line}")
            continue
        if any(field.strip() for field in fields[len(header) :]):
            raise UsageError(
                f"{path}, row {len(rows) + 1}: more fields than columns; put texts with commas, as addresses, in "
                f"quotes (line {line})"
            )
        rows.append(dict(zip(header, fields, strict=False)))


def _delimiter_of(text: str) -> str:
    """The delimiter with which the first line names the most columns; the comma, where none does."""
    header = next((line for line in text.splitlines() if line.strip(DELIMITERS + " ")), "")
    return max(DELIMITERS, key=lambda one: len(COLUMNS & {_column(name.strip(' "')) for name in header.split(one)}))


def _yaml_rows(path: Path) -> list[Row]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Texts as they are written: in plain YAML +14155550100 is a number, and loses its +. A key that is there twice
        is refused; of a merged mapping (`<<: *base`), the keys count that the mapping does not have itself.
        """

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            _check_columns((key.value for key in keys), f"{path}, line {node.start_mark.line + 1}", every=True)
            return node

    plain = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in plain]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        content = yaml.load(_text_in(path), Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{at} is not YAML") from None
    rows = content.get("groups") if isinstance(content, dict) else content or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} is not a list of groups; each begins like `- key: north`")
    return rows


def _column(name: object) -> str:
    """The name of a column, however it is written: `from_handle` for `From Handle`."""
    seen = (one for one in unicodedata.normalize("NFKC", str(name)) if unicodedata.category(one) != "Cf")
    return re.sub(r"[\s_-]+", "_", "".join(seen).strip().casefold())


def _check_columns(names: Iterable[object], where: str, *, every: bool = False) -> None:
    """Raises `UsageError` where a column of a group is there twice, or where any is, with `every`."""
    counts = Counter(_column(name) if _column(name) in COLUMNS else str(name) for name in names)
    for name, count in counts.items():
        if count > 1 and (every or name in COLUMNS):
            raise UsageError(f'{where}: "{escape(name)}" is there {count} times; remove all but one')


def _query_rows(query: str, workspace: Workspace) -> list[Row]:
    if not workspace.database.exists():
        raise UsageError(f"{workspace.database} is not there to be asked; run chats.py first")
    with build_destination(workspace).open_reader() as database:
        try:
            result = database.execute(query)
            columns = [column[0] for column in result.description or ()]
            _check_columns(columns, "the query's columns")
            return [dict(zip(columns, row, strict=True)) for row in result.fetchall()]
        except (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException) as error:
            # These speak of the query, not of rows.
            raise UsageError(f"the query cannot be run on {workspace.database.name}: {error}") from None
        except duckdb.Error as error:
            raise UsageError(f"the query failed on {workspace.database.name} ({type(error).__name__})") from None


def _model_rows(name: str, workspace: Workspace) -> list[Row]:
    schema, _, model = name.rpartition(".")
    if not workspace.database.exists():
        raise UsageError(f"{workspace.database} is not there to be asked for {name}; run chats.py first")
    with build_destination(workspace).open_reader() as database:
        found = database.execute(
            "SELECT table_schema FROM information_schema.tables WHERE table_name = ? AND table_schema = coalesce(?, "
            "table_schema) ORDER BY table_schema <> 'marts', table_schema",
            (model, schema or None),
        ).fetchall()
    if not found:
        raise UsageError(
            f"{workspace.database.name} has no table {name}: build the dbt model first; or {WHAT_A_TABLE_IS}"
        )
    return _query_rows(f"SELECT * FROM {quote_name(found[0][0])}.{quote_name(model)}", workspace)  # noqa: S608 - they are quoted


# -- what has to be true of them


def validate_rows(
    rows: Sequence[Row], numbers: Collection[str] | None, disguised: Callable[[str], str] = str
) -> tuple[DesiredGroup, ...]:
    """The rows as groups, in their order. `numbers` are the account's own, in disguise; null where they are not known.
    Raises `UsageError` when there are no rows, `InvalidRowsError` with all faults of all rows.
    """
    if not rows:
        raise UsageError("the desired table has no rows, which is taken for a mistake; no group was touched")
    for number, row in enumerate(rows, 1):
        _check_columns(row, f"the desired table, row {number}")
    rows = [{_column(name): value for name, value in row.items()} for row in rows]
    missing = [name for name in REQUIRED if all(name not in row for row in rows)]
    if missing:
        raise UsageError(f"the desired table has no column {', '.join(missing)}; it needs {', '.join(REQUIRED)}")
    faults: list[str] = []
    groups = []
    for number, row in enumerate(rows, 1):
        group, found = _group_of(row, numbers, disguised)
        name = f"row {number} ({escape(group.key)})" if group.key else f"row {number}"
        faults += [f"{name}: {fault}" for fault in found]
        groups.append(group)
    counts = Counter(group.key for group in groups if group.key)
    for key, count in counts.items():
        if count > 1:
            same = [str(number) for number, group in enumerate(groups, 1) if group.key == key]
            faults.append(f"rows {', '.join(same)} ({escape(key)}): the same key; each group has its own")
    if faults:
        raise InvalidRowsError(faults)
    return tuple(groups)


def _group_of(
    row: Row, numbers: Collection[str] | None, disguised: Callable[[str], str]
) -> tuple[DesiredGroup, list[str]]:
    faults = [
        f"{name} is a list; write it as text"
        for name in ("key", "from_handle", "title", "message")
        if isinstance(row.get(name), Mapping | list | tuple)
    ]
    if isinstance(row.get("addresses"), Mapping):
        faults.append("addresses is a mapping; write it as a list")
    key, message, title = (_text(row.get(name)) for name in ("key", "message", "title"))
    if not key:
        faults.append("key is missing")
    elif escape(key) != key:
        faults.append("key has characters that cannot be seen, or that move others; type it again")
    if not message:
        faults.append("message is missing; the first message is what establishes a group")
    if len(title) > MAX_TITLE:
        faults.append(f"title has {len(title)} characters; {MAX_TITLE} are allowed")
    from_handle = parse_handle(_text(row.get("from_handle")))
    if from_handle is None:
        faults.append("from_handle is neither a number in E.164 form (like +14155550100) nor an e-mail address")
    elif numbers is not None:
        ours = {fold_handle(one): one for one in numbers}.get(fold_handle(disguised(from_handle)))
        if ours is None:
            faults.append("from_handle is not one of the account's numbers; GET /v1/numbers lists them")
        elif not PSEUDONYM.fullmatch(ours):
            # As the account writes it.
            from_handle = ours
    addresses, found = _addresses_of(row.get("addresses"), from_handle)
    return DesiredGroup(key, from_handle or "", addresses, message, title or None), faults + found


def _addresses_of(value: Any, from_handle: str | None) -> tuple[tuple[str, ...], list[str]]:
    faults = []
    addresses: dict[str, str] = {}
    ours = None if from_handle is None else fold_handle(from_handle)
    for number, written in enumerate(_listed(value), 1):
        handle = parse_handle(written)
        if handle is None:
            faults.append(
                f"address {number} is a pseudonym; take the numbers themselves from a table of your own"
                if PSEUDONYM.fullmatch(written)
                else f"address {number} is neither a number in E.164 form (+ and country code) nor an e-mail address"
            )
            continue
        folded = fold_handle(handle)
        if folded in addresses:
            faults.append(f"address {number} is there twice")
        if folded == ours:
            faults.append(f"address {number} is from_handle, which is in the group anyway")
        addresses.setdefault(folded, handle)
    count = len(addresses.keys() - {ours})
    if not faults and not MIN_MEMBERS <= count <= MAX_MEMBERS:
        faults.append(f"a group has {MIN_MEMBERS} to {MAX_MEMBERS} addresses, not {count}")
    return tuple(sorted(addresses.values())), faults


def _listed(value: Any) -> list[str]:
    """Addresses as a list, from a list or from text."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                value = value.strip("[] ")
        if isinstance(value, str):
            value = re.split(r"[,;\t\r\n\u2028\u2029\u3001\uff0c\uff1b]", value)
    parts = value if isinstance(value, Iterable) and not isinstance(value, Mapping) else ()
    # A list within the list, as YAML writes `[*team, dora@example.com]`.
    flat = (one for part in parts for one in (part if isinstance(part, list | tuple) else (part,)))
    return [text for one in flat if (text := _text(one))]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
