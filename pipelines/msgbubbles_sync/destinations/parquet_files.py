"""Tables that are files in a folder, for Spark and whatever else reads Parquet: `--destination filesystem`.

    /shared/folder/
      warehouse.duckdb            views of all that is below, for DuckDB
      msgbubbles/<table>/         what the job lands; dlt writes it
      marts/<build>/<mart>/       what Spark makes of it, each time anew: whoever reads the last one is not disturbed
      .msgbubbles/<account>.json  what is shown of an account: a query for each table

All files are new ones, and old ones stay for an hour after something else took their place: nobody waits for anybody.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
from filelock import FileLock

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import remove, set_umask_like, sync_to_disk
from msgbubbles_sync.settings import setting_of_sync
from msgbubbles_sync.sql import named, quoted
from msgbubbles_sync.workspace import CLAIM_TABLE, DATASET, UNUSABLE, Workspace

from .publish import beside, replaced
from .union_accounts import OWN_TABLES, SHOWN, union_of

NO_FOLDER = """--destination filesystem: {why}; say in dlt_config/secrets.toml where its files are:

  [destination.filesystem]
  bucket_url = "/shared/folder\""""
NO_FORMAT = """[sync] table_format: "delta" is no longer supported. Remove the key; the folder is read again into
Parquet. For an open format with merges use --destination ducklake."""
HOLDS_DELTA = """{tables} holds Delta tables of an older release, which are no longer supported. Run chats.py: it moves
them aside and reads everything again into Parquet."""
MOVED_DELTA = """{tables} held Delta tables of an older release, which are no longer supported: moved to {aside}.
Everything is read again from the API into Parquet. Webhook events that were loaded before, and rows that the API no
longer returns, are only in {aside}. Delete it when you do not need them."""
ONE_ACCOUNT = """{folder} holds one account, which has no name; let the accounts have another bucket_url"""
MANY_ACCOUNTS = """{folder} shows several accounts, and no account is configured: see [accounts.NAME] in
dlt_config/config.toml, or choose another bucket_url"""

# The file that describes the tables of a dataset, in its folder.
TABLES = "_tables.json"
# The folder in a build with the tables that nobody reads.
STAGING = ".staging"
# Stands for the name of an only account; no account can be called so.
NAMELESS = "_"
# The job's own tables, each one file.
OWN = ("sync_runs", "failed_reads", "privacy", CLAIM_TABLE)
# A table of more files than this becomes one again.
MOST_FILES = 100
# How long what is not shown any more stays for those who are reading it.
KEPT_SECONDS = 3600


class LakeFiles:
    """The destination; see `Destination`."""

    title = "filesystem"
    file_format: Literal["parquet", "csv"] = "parquet"
    landed = DATASET

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.prefix = workspace.prefix
        self.dataset = f"{self.prefix}{DATASET}"

    def dlt(self) -> Any:
        return dlt_destination(self._folder)

    @property
    def _folder(self) -> Path:
        import dlt

        found: Any = dlt.secrets.get("destination.filesystem.bucket_url")
        if not isinstance(found, str) or not found:
            raise UsageError(NO_FOLDER.format(why="it has no folder"))
        found = found.removeprefix("file://")
        if "://" in found or not Path(found).is_absolute():
            raise UsageError(NO_FOLDER.format(why="bucket_url is the whole path of a folder that all readers see"))
        if refused := UNUSABLE.search(found):
            raise UsageError(NO_FOLDER.format(why=f"DuckDB and dlt cannot load files from a path with {refused[0]!r}"))
        return Path(found)

    @property
    def _tables(self) -> Path:
        return self._folder / self.dataset

    @property
    def _marts(self) -> Path:
        return self._folder / f"{self.prefix}marts"

    @property
    def _shown(self) -> Path:
        return self._folder / ".msgbubbles" / f"{self._workspace.account or NAMELESS}.json"

    @property
    def _build(self) -> Path:
        """Where the name of the latest build is."""
        return self._workspace.folder / "dbt" / "build"

    def exists(self) -> bool:
        return self._shown.exists()

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            shown = json.loads(self._shown.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._shown} cannot be read ({type(error).__name__})") from None
        with self._connected() as connection:
            _create_views(connection, {key: one["query"] for key, one in _by_key(shown["tables"]).items()})
            yield connection

    @contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The tables that land, and the job's own ones, which are written anew in the end."""
        with self._connected() as connection:
            queries = self._queries(self._latest_marts({}))
            own = {name: queries.pop((DATASET, name)) for name in OWN if (DATASET, name) in queries}
            _create_views(connection, queries)
            for name, query in own.items():
                connection.execute(f"CREATE TABLE {DATASET}.{name} AS {query}")
            yield connection
            there = connection.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'msgbubbles'")
            for (name,) in there.fetchall():
                (self._tables / name).mkdir(parents=True, exist_ok=True)
                new = self._tables / name / ".new"
                connection.execute(f"COPY {DATASET}.{named(name)} TO {quoted(str(new))} (FORMAT parquet)")
                new.replace(self._tables / name / f"{name}.parquet")

    @contextmanager
    def _connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection

    def kept_open(self, _pipeline: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def set_delta_aside(self) -> str | None:
        """Move the tables aside if an older release wrote them as Delta, and return what to tell the user of it.

        `prepare` then begins with an empty folder. Readers keep the rows they had until the next `publish`. Raises
        `UsageError` and `OSError`.
        """
        _check_format()
        if not self._holds_delta():
            return None
        aside = self._tables.with_name(f"{self.dataset}.delta-{time.time_ns()}")
        self._tables.rename(aside)
        if tables := (shown := self._known())["tables"]:
            for table in tables[DATASET].values():
                table["query"] = table["query"].replace(quoted(f"{self._tables}/")[:-1], quoted(f"{aside}/")[:-1])
            write_json(self._shown, shown)
            self._show_all()
        return MOVED_DELTA.format(tables=self._tables, aside=aside)

    def _holds_delta(self) -> bool:
        return any(self._tables.glob("*/_delta_log"))

    def prepare(self) -> None:
        _check_format()
        folder = self._folder
        try:
            (folder / ".msgbubbles").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(NO_FOLDER.format(why=f"the folder cannot be made ({error.strerror})")) from None
        set_umask_like(folder)
        accounts = {path.stem for path in (folder / ".msgbubbles").glob("*.json")}
        if self._workspace.account is None and accounts - {NAMELESS}:
            raise UsageError(MANY_ACCOUNTS.format(folder=folder))
        if self._workspace.account is not None and NAMELESS in accounts:
            raise UsageError(ONE_ACCOUNT.format(folder=folder))
        if not self._tables.exists():
            self._workspace.forget_loads()
            self._build.unlink(missing_ok=True)
        if self._holds_delta():
            raise UsageError(HOLDS_DELTA.format(tables=self._tables))

    @contextmanager
    def building(self) -> Iterator[tuple[Path, Path]]:
        build = self._marts / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        try:
            build.mkdir(parents=True)
            yield self._tables, build
            shutil.rmtree(build / STAGING)
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        self._build.write_text(build.name)

    def dbt(self) -> tuple[str, dict[str, str]]:
        return "spark", {}

    def publish(self, held_marts: Sequence[str] = ()) -> int | None:
        """Show what there is now."""
        before = self._known()
        marts = self._latest_marts(before["marts"], held_marts)
        old = before["old"] | {name: time.time() for name in self._compacted(before["old"])}
        builds = [path.name for path in self._marts.glob("*")]
        for name in {f"{self._marts.name}/{build}" for build in builds if build not in marts.values()} - old.keys():
            old[name] = time.time()
        for name in [name for name, since in old.items() if since < time.time() - KEPT_SECONDS]:
            remove(self._folder / name)
            del old[name]
        with self._connected() as connection:
            tables: dict[str, Any] = {schema: {} for schema in SHOWN}
            for (schema, table), query in self._queries(marts).items():
                columns = [row[0] for row in connection.execute(f"DESCRIBE {query}").fetchall()]
                tables[schema][table] = {"columns": columns, "query": query}
        write_json(self._shown, {"tables": tables, "marts": marts, "old": old})
        self._show_all()
        return None

    def _known(self) -> dict[str, Any]:
        """What is shown: of each table a query, of each mart its build; and since when something is not any more."""
        empty: dict[str, Any] = {"tables": {}, "marts": {}, "old": {}}
        with suppress(FileNotFoundError, ValueError, TypeError):  # a damaged one is written anew by this run
            empty |= json.loads(self._shown.read_text())
        return empty

    def _latest_marts(self, before: Mapping[str, str], held: Sequence[str] = ()) -> dict[str, str]:
        """Of each mart the build that is to be shown; those that are held stay as they were."""
        try:
            build = self._build.read_text()
        except FileNotFoundError:
            return dict(before)
        built = {path.name: build for path in (self._marts / build).iterdir() if path.is_dir()}
        return {**{name: build for name, build in built.items() if name not in held},
                **{name: build for name, build in before.items() if name in held}}  # fmt: skip

    def _queries(self, marts: Mapping[str, str]) -> dict[tuple[str, str], str]:
        found = {}
        for table in tables_in(self._tables):
            found[DATASET, table.name] = one_of_each(table, [f"{self._tables / table.name}/*.parquet"])
        for name in OWN:
            if (self._tables / name / f"{name}.parquet").exists():
                found[DATASET, name] = _all_of(self._tables / name)
        for mart, build in marts.items():
            found["marts", mart] = _all_of(self._marts / build / mart)
        return found

    def _compacted(self, old: Mapping[str, float]) -> list[str]:
        """Make one file of the many of a table, where they have become too many. Returns which are not needed any
        more. While both are there, each row is there twice, which changes nothing."""
        unneeded: list[str] = []
        for table in tables_in(self._tables):
            folder = self._tables / table.name
            files = {f"{self.dataset}/{table.name}/{path.name}": path for path in folder.glob("*.parquet")}
            files = {name: path for name, path in files.items() if name not in old}
            if len(files) > MOST_FILES:
                new = folder / f".{time.time_ns()}.new"
                with self._connected() as connection:
                    connection.execute("SET preserve_insertion_order = false")
                    rows = one_of_each(table, [str(path) for path in files.values()])
                    connection.execute(f"COPY ({rows}) TO {quoted(str(new))} (FORMAT parquet)")
                sync_to_disk(new)
                new.rename(folder / f"compacted.{time.time_ns()}.parquet")
                unneeded += files
        return unneeded

    def _show_all(self) -> None:
        """Make the views anew, of all accounts."""
        with FileLock(self._shown.parent / "lock"):
            queries = {
                path.stem: _by_key(json.loads(path.read_text())["tables"]) for path in self._shown.parent.glob("*.json")
            }
            if NAMELESS in queries:
                views = {key: one["query"] for key, one in queries[NAMELESS].items() if not OWN_TABLES.match(key[1])}
            else:
                columns = {
                    account: {key: one["columns"] for key, one in found.items()} for account, found in queries.items()
                }
                united = union_of(columns, lambda account, *key: f"({queries[account][key]['query']})")
                views = {key: query for key, (_, query) in united.items()}
            database = self._folder / "warehouse.duckdb"
            copy = beside(database)
            with duckdb.connect(str(copy)) as connection:
                _create_views(connection, views)
            replaced(database, copy)

    def explain(self, _said: str) -> str | None:
        return None

    def is_older_than(self, minutes: float) -> bool:
        return minutes >= 0


@dataclass(frozen=True)
class Table:
    """A table with its key. Where a key has several rows, that of the latest load counts, and of one load the one that
    was read last; with `first_stays`, the first of the first."""

    name: str
    key: tuple[str, ...]
    has_read_at: bool = True
    first_stays: bool = False

    @property
    def rank(self) -> str:
        """1 for the row of a key that counts: SQL that DuckDB and Spark understand."""
        direction = "" if self.first_stays else " DESC"
        order = [f"{name}{direction}" for name in ("_dlt_load_id", *["_fetched_at"] * self.has_read_at)]
        return f"row_number() OVER (PARTITION BY {', '.join(self.key)} ORDER BY {', '.join(order)})"

    @property
    def qualify(self) -> str:
        return f" QUALIFY {self.rank} = 1"

    def as_dict(self) -> dict[str, Any]:
        return {"key": list(self.key), "has_read_at": self.has_read_at, "first_stays": self.first_stays}


def one_of_each(table: Table, files: Sequence[str]) -> str:
    """A query of DuckDB for the row of each key that counts."""
    listed = ", ".join(map(quoted, files))
    return f"SELECT * FROM read_parquet([{listed}], union_by_name = true){table.qualify}"  # noqa: S608


def tables_in(folder: Path) -> list[Table]:
    """Those of a dataset that have files."""
    try:
        known = json.loads((folder / TABLES).read_text())
    except FileNotFoundError:
        return []
    return [
        Table(name, tuple(one.pop("key")), **one)
        for name, one in sorted(known.items())
        if any((folder / name).glob("*.parquet"))
    ]


def dlt_destination(folder: Path) -> Any:
    """Return dlt's destination `filesystem`. Parquet files cannot be changed, so a row that comes again is another row
    of its key; queries through dlt see the one that counts.

    The classes are defined here because importing dlt reads its configuration: `Workspace.configure_dlt` comes before.
    """
    from dlt.common.schema.utils import get_columns_names_with_prop
    from dlt.destinations import filesystem
    from dlt.destinations.impl.filesystem.filesystem import FilesystemClient
    from dlt.destinations.impl.filesystem.sql_client import FilesystemSqlClient

    def table_from(schema: Any) -> Table:
        return Table(
            schema["name"],
            tuple(get_columns_names_with_prop(schema, "primary_key")),
            has_read_at="_fetched_at" in schema["columns"],
            first_stays=schema.get("x-merge-strategy") == "insert-only",
        )

    class SqlClient(FilesystemSqlClient):
        def create_view_select(self, table_schema: Any, schema: Any = None) -> tuple[str, str] | None:
            found = super().create_view_select(table_schema, schema)
            if found is None or self.remote_client.is_dlt_table(table_schema["name"]):
                return found
            return found[0], found[1] + table_from(table_schema).qualify

    class Client(FilesystemClient):
        def __init__(self, schema: Any, config: Any, capabilities: Any) -> None:
            super().__init__(schema, config, capabilities)
            self._sql_client = SqlClient(self, self.dataset_name)

        def update_stored_schema(self, *args: Any, **kwargs: Any) -> Any:
            """Write down the key of each table, before there are rows."""
            update = super().update_stored_schema(*args, **kwargs)
            path = Path(self.dataset_path, TABLES)
            known = json.loads(path.read_text()) if path.exists() else {}
            found = known | {table["name"]: table_from(table).as_dict() for table in self.schema.data_tables()}
            if found != known:
                write_json(path, found)
            return update

    class TableFiles(filesystem):
        @property
        def destination_type(self) -> str:
            return "warehouse.lake_dlt.TableFiles"  # as it is in the state of earlier runs

        @property
        def client_class(self) -> type[FilesystemClient]:
            return Client

    return TableFiles(str(folder), kwargs={"auto_mkdir": True})


def write_json(path: Path, value: Any) -> None:
    """Replace a file durably, all or nothing."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1))
    sync_to_disk(new)
    new.replace(path)


def _check_format() -> None:
    """Refuse the configuration of a release that could write Delta tables. Raises `UsageError`."""
    if setting_of_sync("table_format", "parquet") != "parquet":
        raise UsageError(NO_FORMAT)


def _create_views(connection: duckdb.DuckDBPyConnection, queries: Mapping[tuple[str, str], str]) -> None:
    for schema in SHOWN:
        connection.execute(f"CREATE SCHEMA {schema}")
    for (schema, table), query in queries.items():
        connection.execute(f"CREATE VIEW {schema}.{named(table)} AS {query}")


def _by_key(tables: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(schema, table): one for schema, found in tables.items() for table, one in found.items()}


def _all_of(folder: Path) -> str:
    return f"SELECT * FROM read_parquet({quoted(f'{folder}/*.parquet')})"  # noqa: S608
