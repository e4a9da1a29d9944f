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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import duckdb
from filelock import FileLock

from . import spark
from .configuration import setting_of_sync
from .names import named, quoted
from .place import CLAIM_TABLE, DATASET, Place, UsageError, share_as, sync_to_disk
from .publish import beside, replaced
from .tables import is_delta, one_of_each, rows_of_delta, tables_in, write_json
from .union import OWN_TABLES, SHOWN, union_of

NO_FOLDER = """--destination filesystem: {why}; say in dlt_config/secrets.toml where its files are:

  [destination.filesystem]
  bucket_url = "/shared/folder\""""
NO_FORMAT = '[sync] table_format is "parquet" or "delta"; mend dlt_config/config.toml'
OTHER_FORMAT = """{folder} holds tables that are not of [sync] table_format = "{format}"; set it back, or choose another
bucket_url"""
ONE_ACCOUNT = """{folder} holds one account, which has no name; let the accounts have another bucket_url"""
MANY_ACCOUNTS = """{folder} shows several accounts, and no account is configured: see [accounts.NAME] in
dlt_config/config.toml, or choose another bucket_url"""

Format = Literal["parquet", "delta"]
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

    def __init__(self, place: Place) -> None:
        self._place = place
        self.prefix = place.prefix
        self.dataset = f"{self.prefix}{DATASET}"

    def dlt(self) -> Any:
        from .lake_dlt import DeltaTables, TableFiles

        kind = DeltaTables if self._format == "delta" else TableFiles
        return kind(str(self._folder), kwargs={"auto_mkdir": True})

    @property
    def _folder(self) -> Path:
        import dlt

        found: Any = dlt.secrets.get("destination.filesystem.bucket_url")
        if not isinstance(found, str) or not found:
            raise UsageError(NO_FOLDER.format(why="it has no folder"))
        found = found.removeprefix("file://")
        if "://" in found or not Path(found).is_absolute():
            raise UsageError(NO_FOLDER.format(why="bucket_url is the whole path of a folder that all readers see"))
        return Path(found)

    @property
    def _format(self) -> Format:
        found: Any = setting_of_sync("table_format", "parquet")
        if found not in get_args(Format):
            raise UsageError(NO_FORMAT)
        return found  # type: ignore[no-any-return]

    @property
    def _tables(self) -> Path:
        return self._folder / self.dataset

    @property
    def _marts(self) -> Path:
        return self._folder / f"{self.prefix}marts"

    @property
    def _shown(self) -> Path:
        return self._folder / ".msgbubbles" / f"{self._place.account or NAMELESS}.json"

    @property
    def _build(self) -> Path:
        """Where the name of the latest build is."""
        return self._place.folder / "dbt" / "build"

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

    def prepare(self) -> None:
        folder, wanted = self._folder, self._format
        try:
            (folder / ".msgbubbles").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(NO_FOLDER.format(why=f"the folder cannot be made ({error.strerror})")) from None
        share_as(folder)
        accounts = {path.stem for path in (folder / ".msgbubbles").glob("*.json")}
        if self._place.account is None and accounts - {NAMELESS}:
            raise UsageError(MANY_ACCOUNTS.format(folder=folder))
        if self._place.account is not None and NAMELESS in accounts:
            raise UsageError(ONE_ACCOUNT.format(folder=folder))
        if not self._tables.exists():
            self._place.forget_loads()
            self._build.unlink(missing_ok=True)
        for table in tables_in(self._tables):
            if is_delta(self._tables / table.name) != (wanted == "delta"):
                raise UsageError(OTHER_FORMAT.format(folder=folder, format=wanted))

    @contextmanager
    def building(self) -> Iterator[None]:
        build = self._marts / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        try:
            build.mkdir(parents=True)
            with spark.session(spark.settings(), self._place.folder / "dbt") as session:
                spark.show(session, self._tables, build, self.prefix)
                yield
            shutil.rmtree(spark.staging(build))
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        self._build.write_text(build.name)

    def dbt(self) -> tuple[str, dict[str, str]]:
        spark.require()
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
            _remove(self._folder / name)
            del old[name]
        with self._connected() as connection:
            tables: dict[str, Any] = {schema: {} for schema in SHOWN}
            for (schema, table), query in self._queries(marts).items():
                columns = [row[0] for row in connection.execute(f"DESCRIBE {query}").fetchall()]
                tables[schema][table] = {"columns": columns, "query": query}
        write_json(self._shown, {"tables": tables, "marts": marts, "old": old})
        with FileLock(self._shown.parent / "lock"):
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
            folder = self._tables / table.name
            files = [f"{folder}/*.parquet"]
            found[DATASET, table.name] = rows_of_delta(folder) if is_delta(folder) else one_of_each(table, files)
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
            if is_delta(folder):
                _compact_delta(folder)
                continue
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


def _create_views(connection: duckdb.DuckDBPyConnection, queries: Mapping[tuple[str, str], str]) -> None:
    for schema in SHOWN:
        connection.execute(f"CREATE SCHEMA {schema}")
    for (schema, table), query in queries.items():
        connection.execute(f"CREATE VIEW {schema}.{named(table)} AS {query}")


def _by_key(tables: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(schema, table): one for schema, found in tables.items() for table, one in found.items()}


def _all_of(folder: Path) -> str:
    return f"SELECT * FROM read_parquet({quoted(f'{folder}/*.parquet')})"  # noqa: S608


def _compact_delta(folder: Path) -> None:
    from deltalake import DeltaTable

    table = DeltaTable(str(folder))
    if len(table.file_uris()) > MOST_FILES:
        table.optimize.compact()
    # Delta would keep it for a week, in which each run writes anew what it changes. Nobody else writes.
    kept: dict[str, Any] = {"retention_hours": KEPT_SECONDS // 3600, "enforce_retention_duration": False}
    if table.vacuum(**kept):
        table.vacuum(**kept, dry_run=False)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
