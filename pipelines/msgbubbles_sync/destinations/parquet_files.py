"""Tables of Parquet files in a folder, for Spark and other engines: `--destination filesystem`.

    /shared/folder/
      warehouse.duckdb            views of all tables, for DuckDB
      msgbubbles/<table>/         loaded rows; dlt writes them
      marts/<build>/<mart>/       a build by Spark, in new files each time
      .msgbubbles/<account>.json  the view of an account: a query for each table

Files are never changed, and a replaced one stays for another hour, so readers and writers do not wait for each other.
Only erasures and the like remove files at once.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import msgspec
from filelock import FileLock

from msgbubbles.source.lazy_dlt import dlt
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import move_damaged, remove, set_umask_like
from msgbubbles_sync.lock import hold_lock
from msgbubbles_sync.sql import list_tables, quote_literal, quote_name
from msgbubbles_sync.tables import JOB_TABLES
from msgbubbles_sync.workspace import DATASET, UNUSABLE

from .base import Destination
from .comments import list_descriptions, write_comments
from .compaction import STATES
from .duckdb_file import open_published
from .parquet_rewrite import (
    find_damaged,
    finish_replacing,
    load_states,
    read_state_version,
    replace_files,
)
from .parquet_tables import merge_small_files, read_tables, select_all, write_json
from .publish import prepare_copy, replace_database
from .scratch import open_scratch
from .union_accounts import MANY_ACCOUNTS, OWN_TABLES, READER_SCHEMAS, Key, ReaderTable, build_union

NO_FOLDER = """--destination filesystem: {why}; set its folder in dlt_config/secrets.toml:

  [destination.filesystem]
  bucket_url = "/shared/folder\""""
HOLDS_DELTA = """{tables} holds Delta tables of an older release, which are no longer supported. Run chats.py: it moves
them away and reads everything again into Parquet."""
MOVED_DELTA = """{tables} held Delta tables of an older release, which are no longer supported: moved to {moved}.
Everything is read again from the API into Parquet. Webhook events that were loaded before, and rows that the API no
longer returns, are only in {moved}. Delete it when you do not need them."""
DAMAGED_FILE = re.compile(r"""(?:File|at end of file|Failed to read file) ['"]([^'"]+\.parquet)['"](?!.*[Mm]emory)""")
ONE_ACCOUNT = """{folder} holds one account without a name; choose another bucket_url for the named accounts"""

# The folder in a build with the intermediate tables.
STAGING = ".staging"
# Stands for the name of a single account; no account can have this name.
NAMELESS = "_"
# The note of `find_damaged`.
WHOLE_UNTIL = "whole_until"
# How long a replaced file stays for its readers.
REPLACED_FILES_SECONDS = 3600


class ReaderView(msgspec.Struct, frozen=True):
    """The files of an account that readers see.

    `tables` is by schema and name, `marts` has the build of each mart, and `old` has the Unix timestamp at which a file
    or build was replaced, by its path in the folder.
    """

    tables: dict[str, dict[str, ReaderTable]] = {}
    marts: dict[str, str] = {}
    old: dict[str, float] = {}

    @property
    def by_key(self) -> dict[Key, ReaderTable]:
        return {(schema, name): table for schema, tables in self.tables.items() for name, table in tables.items()}


class ParquetFiles(Destination):
    """Parquet files in a folder."""

    title = "filesystem"

    def build_dlt_destination(self) -> Any:
        from .parquet_dlt import build_table_files

        return build_table_files(self._folder)

    def read_dbt_target(self) -> tuple[str, dict[str, str]]:
        return "spark", {}

    @property
    def _folder(self) -> Path:
        path: Any = dlt.secrets.get("destination.filesystem.bucket_url")
        if not isinstance(path, str) or not path:
            raise UsageError(NO_FOLDER.format(why="it has no folder"))
        path = path.removeprefix("file://")
        if "://" in path or not Path(path).is_absolute():
            raise UsageError(NO_FOLDER.format(why="bucket_url must be the absolute path of a folder"))
        if refused := UNUSABLE.search(path):
            raise UsageError(NO_FOLDER.format(why=f"DuckDB and dlt cannot load files from a path with {refused[0]!r}"))
        return Path(path)

    @property
    def tables_folder(self) -> Path:
        return self._folder / self.dataset

    @property
    def _marts(self) -> Path:
        return self._folder / f"{self.prefix}marts"

    @property
    def _view_file(self) -> Path:
        return self._folder / ".msgbubbles" / f"{self.workspace.account or NAMELESS}.json"

    @property
    def _build_file(self) -> Path:
        """The file that holds the name of the latest build."""
        return self.workspace.dbt_folder / "build"

    def exists(self) -> bool:
        return self._view_file.exists()

    def has_tables(self) -> bool:
        return self.tables_folder.exists()

    @contextmanager
    def open_reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            view = _read_view(self._view_file)
        except (OSError, msgspec.MsgspecError) as error:
            raise UsageError(f"{self._view_file} cannot be read ({type(error).__name__})") from None
        with _connect() as connection:
            _create_views(connection, {key: table.query for key, table in view.by_key.items()})
            yield connection

    def open_all_accounts(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return open_published(self._folder / "warehouse.duckdb")

    @contextmanager
    def open_writer(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a connection to views of the loaded tables, and to the job's tables, each of which becomes one file."""
        with _connect() as connection:
            queries = self._build_queries(self._find_builds({}))
            own = {name: queries.pop((DATASET, name)) for name in JOB_TABLES if (DATASET, name) in queries}
            _create_views(connection, queries)
            for name, query in own.items():
                connection.execute(f"CREATE TABLE {DATASET}.{name} AS {query}")
            yield connection
            for name in list_tables(connection, DATASET):
                (self.tables_folder / name).mkdir(parents=True, exist_ok=True)
                new = self.tables_folder / name / ".new"
                connection.execute(f"COPY {DATASET}.{quote_name(name)} TO {quote_literal(str(new))} (FORMAT parquet)")
                new.replace(self.tables_folder / name / f"{name}.parquet")

    def store_comments(self, _connection: duckdb.DuckDBPyConnection) -> None:
        """Do nothing: comments are stored with the views that readers open, by `publish`."""

    @contextmanager
    def rewrite_rows(self, tables: Collection[str] | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        queries = {
            name: query for (schema, name), query in self._build_queries({}).items()
            if schema == DATASET and (not tables or name in tables)
        }  # fmt: skip
        with _connect() as connection, open_scratch(connection, self.workspace.folder, queries):
            if not tables:
                load_states(connection, self.tables_folder)
            yield connection
            files = {
                name: f"{name if name in JOB_TABLES else f'rewritten.{time.time_ns()}'}.parquet"
                for name in list_tables(connection, f"scratch.{DATASET}") if name != STATES
            }  # fmt: skip
            replace_files(connection, self.tables_folder, files)

    def remove_old_versions(self) -> None:
        view = self._read_own_view()
        shown = {*view.marts.values(), *self._find_builds({}).values()}
        old = [self._folder / name for name in view.old]
        damaged = self.tables_folder.glob("*/*.damaged-*")
        for path in [*old, *damaged, *(path for path in self._marts.glob("*") if path.name not in shown)]:
            remove(path)
        write_json(self._view_file, msgspec.structs.replace(view, old={}))

    def explain(self, message: str) -> str | None:
        if file := DAMAGED_FILE.search(message):
            self.workspace.set_pending("damage")
            return f"{file[1]} is damaged. Run a sync, which reads its rows again"
        return None

    def list_out_of_reach(self) -> list[str]:
        moved = [str(path) for path in self._folder.glob(f"{self.dataset}.delta-*")]
        return [
            "snapshots, versions and backups of the folder", "readers that have old files open",
            "temporary files of a Spark that was killed", "tables that you made from these", *moved,
        ]  # fmt: skip

    def move_delta_tables(self) -> str | None:
        """Move away tables that an older release wrote as Delta, and return the message for the user.

        Readers see the old rows until the next `publish`. Raises `UsageError` and `OSError`.
        """
        if not self._holds_delta():
            return None
        moved = self.tables_folder.with_name(f"{self.dataset}.delta-{time.time_ns()}")
        self.tables_folder.rename(moved)
        if (view := self._read_own_view()).tables:
            old, new = quote_literal(f"{self.tables_folder}/")[:-1], quote_literal(f"{moved}/")[:-1]
            for name, table in view.tables[DATASET].items():
                view.tables[DATASET][name] = ReaderTable(table.columns, table.query.replace(old, new))
            write_json(self._view_file, view)
            self._replace_reader_database()
        return MOVED_DELTA.format(tables=self.tables_folder, moved=moved)

    def move_damaged_files(self) -> list[Path]:
        """Rename files that were cut off, and forget what has been read. Returns the new paths. Raises `UsageError`."""
        note = self.workspace.folder / WHOLE_UNTIL
        is_thorough = self.workspace.is_pending("damage")
        damaged = [move_damaged(path) for path in find_damaged(self.tables_folder, note, is_thorough=is_thorough)]
        self.workspace.set_done("damage")
        if damaged:
            remove(self.tables_folder / STATES)
            self.workspace.forget_loads()
        return damaged

    def _holds_delta(self) -> bool:
        return any(self.tables_folder.glob("*/_delta_log"))

    def lock(self) -> AbstractContextManager[None]:
        return hold_lock(self._make_folder("jobs", self._view_file.stem))

    def _make_folder(self, *names: str) -> Path:
        """Create the folder of the job's files, or one in it, with the shared folder's permissions."""
        made = self._view_file.parent.joinpath(*names)
        try:
            self._view_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            set_umask_like(self._folder)
            made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(NO_FOLDER.format(why=f"the folder cannot be made ({error.strerror})")) from None
        return made

    def prepare(self) -> None:
        accounts = {path.stem for path in self._make_folder().glob("*.json")}
        if self.workspace.account is None and accounts - {NAMELESS}:
            raise UsageError(MANY_ACCOUNTS.format(where=self._folder, other="bucket_url"))
        if self.workspace.account is not None and NAMELESS in accounts:
            raise UsageError(ONE_ACCOUNT.format(folder=self._folder))
        if not self.tables_folder.exists():
            self.workspace.forget_loads()
            self._build_file.unlink(missing_ok=True)
        else:
            finish_replacing(self.tables_folder)
            self._discard_foreign_loads(read_state_version(self.tables_folder))
        if self._holds_delta():
            raise UsageError(HOLDS_DELTA.format(tables=self.tables_folder))

    @contextmanager
    def open_build(self) -> Iterator[tuple[Path, Path]]:
        build = self._marts / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        try:
            build.mkdir(parents=True)
            yield self.tables_folder, build
            shutil.rmtree(build / STAGING)
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        self._build_file.write_text(build.name)

    def publish(self, held_marts: Sequence[str] = ()) -> int | None:
        before = self._read_own_view()
        marts = self._find_builds(before.marts, held_marts)
        old, failure = dict(before.old), None
        try:
            options = {**self.options(), "temp_directory": str(self.workspace.folder / "spilled")}
            for path in merge_small_files(self.tables_folder, {self._folder / name for name in old}, options):
                old[str(path.relative_to(self._folder))] = time.time()
        except duckdb.Error as error:  # what was written is published without that
            failure = error
        for build in self._marts.glob("*"):
            if build.name not in marts.values():
                old.setdefault(str(build.relative_to(self._folder)), time.time())
        for name in [name for name, since in old.items() if since < time.time() - REPLACED_FILES_SECONDS]:
            remove(self._folder / name)
            del old[name]
        with _connect() as connection:
            tables: dict[str, dict[str, ReaderTable]] = {schema: {} for schema in READER_SCHEMAS}
            for (schema, table), query in self._build_queries(marts).items():
                columns = [row[0] for row in connection.execute(f"DESCRIBE {query}").fetchall()]
                tables[schema][table] = ReaderTable(columns, query)
        write_json(self._view_file, ReaderView(tables, marts, old))
        self._replace_reader_database()
        if failure is not None:
            raise failure
        return None

    def _read_own_view(self) -> ReaderView:
        with suppress(FileNotFoundError, msgspec.MsgspecError):  # `publish` replaces a damaged one
            return _read_view(self._view_file)
        return ReaderView()

    def empty_marts(self, marts: Collection[str]) -> None:
        for build in self._marts.glob("*"):
            for mart in marts:
                remove(build / mart)

    def _find_builds(self, before: Mapping[str, str], held: Sequence[str] = ()) -> dict[str, str]:
        """Return the build of each mart to publish. Held marts stay at their build."""
        try:
            build = self._build_file.read_text(errors="replace")
        except FileNotFoundError:
            return dict(before)
        built = {path.name: build for path in (self._marts / build).iterdir() if path.is_dir()}
        return {**{name: build for name, build in built.items() if name not in held},
                **{name: build for name, build in before.items() if name in held}}  # fmt: skip

    def _build_queries(self, marts: Mapping[str, str]) -> dict[Key, str]:
        queries = {}
        for name, table in read_tables(self.tables_folder).items():
            queries[DATASET, name] = table.build_query([f"{self.tables_folder / name}/*.parquet"])
        for name in JOB_TABLES:
            if (self.tables_folder / name / f"{name}.parquet").exists():
                queries[DATASET, name] = select_all(self.tables_folder / name)
        for mart, build in marts.items():
            queries["marts", mart] = select_all(self._marts / build / mart)
        return queries

    def _replace_reader_database(self) -> None:
        """Replace the database of views, which shows all accounts."""
        with FileLock(self._view_file.parent / "lock"):
            accounts = {path.stem: _read_view(path).by_key for path in self._view_file.parent.glob("*.json")}
            if NAMELESS in accounts:
                only = accounts[NAMELESS].items()
                views = {key: table.query for key, table in only if not OWN_TABLES.match(key[1])}
            else:
                columns = {
                    name: {key: table.columns for key, table in tables.items()} for name, tables in accounts.items()
                }
                union = build_union(columns, lambda account, *key: f"({accounts[account][key].query})")
                views = {key: table.query for key, table in union.items()}
            database = self._folder / "warehouse.duckdb"
            copy = prepare_copy(database)
            with duckdb.connect(str(copy)) as connection:
                _create_views(connection, views)
                write_comments(connection, DATASET, list_descriptions())
            replace_database(database, copy)


@contextmanager
def _connect() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def _read_view(path: Path) -> ReaderView:
    return msgspec.json.decode(path.read_bytes(), type=ReaderView)


def _create_views(connection: duckdb.DuckDBPyConnection, queries: Mapping[Key, str]) -> None:
    for schema in READER_SCHEMAS:
        connection.execute(f"CREATE SCHEMA {schema}")
    for (schema, table), query in queries.items():
        connection.execute(f"CREATE VIEW {schema}.{quote_name(table)} AS {query}")
