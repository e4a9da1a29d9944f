"""Tables in a lake: Parquet files in a shared folder or a bucket, with a catalog on a PostgreSQL server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import duckdb
from tenacity import Retrying, retry_if_not_exception_type, stop_after_attempt, wait_random

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import remove, set_umask_like
from msgbubbles_sync.sql import quote_literal, quote_name, transaction

from . import server
from .attached import Attached
from .bucket import Bucket
from .comments import list_descriptions, write_comments
from .libpq import build_environment, format_dsn
from .loaded_tables import forget_schema
from .union_accounts import Key

if TYPE_CHECKING:
    from .ducklake_dlt import Lake

NO_LAKE = """--destination ducklake: {why}; set its catalog and folder in dlt_config/secrets.toml:

  [destination.ducklake.credentials]
  catalog = "postgresql://user:password@host:5432/database"
  storage = {{ bucket_url = "/shared/folder" }}  # or s3://bucket/folder, with its key: see docs/destinations.md"""

OTHER_LAKE = """--destination ducklake: {url} holds files of another lake in {schema}. Set bucket_url to a folder
of its own in dlt_config/secrets.toml, or remove the files if their catalog is lost"""
LOST_FILE = re.compile(r"ducklake-[-\w]+\.parquet(?:(?!NoSuchBucket).){0,300}?(?:No such file|\b404\b)", re.S)
LOST = """the catalog of the lake names files that are missing, as if it was restored from a backup, and an erasure has
removed them since. Restore them, or run chats.py: it empties the tables concerned, and reads everything again"""
ALL_LOST = """--destination ducklake: {url} has no files, and the catalog names some. Mount the folder, correct
bucket_url, or restore the files"""
# The tables of the current snapshot, and their files with rows and with deletions.
FILES = """SELECT schema_name, table_name, file.path FROM {lake}.ducklake_schema AS schema
JOIN {lake}.ducklake_table AS tab USING (schema_id) JOIN (
    SELECT table_id, path, end_snapshot FROM {lake}.ducklake_data_file
    UNION ALL SELECT table_id, path, end_snapshot FROM {lake}.ducklake_delete_file
) AS file USING (table_id)
WHERE schema.end_snapshot IS NULL AND tab.end_snapshot IS NULL AND file.end_snapshot IS NULL"""
LAKES = (
    "SELECT nspname::text FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE relname = 'ducklake_metadata'"
)
LAKE_URL = "SELECT value FROM {lake}.ducklake_metadata WHERE key = 'data_path'"


class DuckLake(Attached):
    """A lake. Readers and writers do not wait for each other."""

    title = "ducklake"
    _another = "ducklake_name"
    _rename = "copy its schemas to {prefix}msgbubbles and so on, and drop them: DuckLake cannot rename any"

    def build_dlt_destination(self) -> Any:
        lake = self._read_lake()
        # dlt sets its configuration once the database is open, when DuckDB refuses to change `build_config`'s.
        return lake.build_dlt_destination({"extension_directory": str(self._link_extensions(lake.bucket))})

    def _read_lake(self) -> Lake:
        from .ducklake_dlt import read_lake

        return read_lake(self._settings)

    def read_dbt_target(self) -> tuple[str, dict[str, str]]:
        lake = self._read_lake()
        parameters, bucket = dict(lake.parameters), lake.bucket
        # libpq has no environment variables for these.
        address = {name: parameters.pop(name) for name in ("dbname", "keepalives_idle") if name in parameters}
        return "ducklake", {
            "MSGBUBBLES_LAKE": lake.name,
            # libpq reads the rest from the environment, so that no message of dbt can quote it.
            "MSGBUBBLES_LAKE_CATALOG": f"ducklake:postgres:{format_dsn(address)}",
            "MSGBUBBLES_LAKE_FILES": lake.url,
            "MSGBUBBLES_LAKE_SECRETS": json.dumps([{"scope": bucket.url, **bucket.secret}] if bucket else []),
            # Relations are written without the database.
            "MSGBUBBLES_LAKE_SETTINGS": json.dumps(
                {"schema": f"warehouse.{self.name_schema('staging')}", **(bucket.settings if bucket else {})}
            ),
            "MSGBUBBLES_EXTENSIONS": str(self._link_extensions(bucket)),
            **build_environment(parameters),
        }

    @contextmanager
    def _connect(self, bucket: Bucket | None) -> Iterator[duckdb.DuckDBPyConnection]:
        folder = {"extension_directory": str(self._link_extensions(bucket))}
        with duckdb.connect(config=folder | server.build_config(_list_extensions(bucket))) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            if bucket is not None:
                bucket.add_secret(connection)
            yield connection

    @contextmanager
    def _attach(self, *options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        lake = self._read_lake()
        address = quote_literal(f"ducklake:postgres:{format_dsn(lake.parameters)}")
        where = f"DATA_PATH {quote_literal(lake.url)}, METADATA_SCHEMA {quote_literal(lake.name)}"
        with self._connect(lake.bucket) as connection:
            try:
                # Of two concurrent first jobs, only one can create the lake. An unreachable server is reported at once.
                for attempt in Retrying(
                    retry=retry_if_not_exception_type(duckdb.IOException),
                    stop=stop_after_attempt(10), wait=wait_random(0, 0.5), reraise=True,
                ):  # fmt: skip
                    with attempt:
                        connection.execute(f"ATTACH {address} AS warehouse ({', '.join([where, *options])})")
            except duckdb.Error as error:
                raise UsageError(
                    NO_LAKE.format(why=f"it cannot be opened ({type(error).__name__}){server.find_reason(error)}")
                ) from None
            server.loaded_extensions.update(_list_extensions(lake.bucket))
            connection.execute("USE warehouse")
            yield connection

    def _attach_server(self, *options: str) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        refusal = NO_LAKE.format(why="its catalog cannot be opened {why}")
        return server.attach(self._read_lake().parameters, self.title, refusal, *options)

    @property
    def _lock_scope(self) -> str:
        return f"{self._read_lake().name}."

    def exists(self) -> bool:
        # A lake that does not exist yet cannot be opened read-only.
        if self._open_session is None:
            with self._attach_server() as connection:
                if not self._is_created(connection):
                    return False
        return super().exists()

    def _is_created(self, connection: duckdb.DuckDBPyConnection) -> bool:
        table = quote_literal(f"{self._read_lake().name}.ducklake_metadata")
        return server.query(connection, f"SELECT to_regclass({table}) IS NOT NULL") == [(True,)]

    def probe(self) -> None:
        self._probe_bucket()
        super().probe()

    def _probe_bucket(self) -> None:
        bucket = self._read_lake().bucket
        if bucket is not None:
            with self._connect(bucket) as connection:
                bucket.probe(connection)

    def prepare(self) -> None:
        lake = self._read_lake()
        self._probe_bucket()
        with self._attach_server() as connection:
            server.check(connection, [lake.name], self.title)
            is_created = self._is_created(connection)
        if not is_created:
            self._refuse_files_of_another_lake(lake)
        with suppress(FileNotFoundError):  # the first writer creates it, or it is a bucket
            set_umask_like(Path(lake.url.removeprefix("file://")))
        super().prepare()
        with self._open() as connection:
            # dbt connects to this schema.
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS warehouse.{self.name_schema('staging')}")

    def _replace_views(self, connection: duckdb.DuckDBPyConnection, views: Mapping[Key, str]) -> None:
        with transaction(connection):
            for schema in sorted({schema for schema, _ in views}):
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS warehouse.{schema}")
            for (schema, table), query in views.items():
                connection.execute(f"CREATE OR REPLACE VIEW warehouse.{schema}.{quote_name(table)} AS {query}")

    def _empty_table(self, connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> None:
        # It becomes a new table, because the catalog keeps the extremes of all values that a table ever had.
        columns = connection.execute(
            "SELECT column_name, data_type, is_nullable FROM duckdb_columns() "
            "WHERE (database_name, schema_name, table_name) = ('warehouse', ?, ?) ORDER BY column_index",
            [schema, table],
        ).fetchall()
        definitions = ", ".join(
            f"{quote_name(name)} {kind}{'' if is_nullable else ' NOT NULL'}" for name, kind, is_nullable in columns
        )
        connection.execute(f"CREATE OR REPLACE TABLE warehouse.{schema}.{quote_name(table)} ({definitions})")

    def empty_lost_tables(self) -> list[str]:
        """Empty the tables of this job of which files are missing, and return their names.

        The next load then reads everything again. Raises `UsageError` if there are no files at all.
        """
        lake = self._read_lake()
        with self._attach_server() as connection:
            files = server.query(connection, FILES.format(lake=quote_name(lake.name)))
        with self._open_to_change() as connection:
            pattern = quote_literal(f"{lake.url.rstrip('/')}/**/ducklake-*.parquet")
            stored = {PurePosixPath(path).name for (path,) in connection.execute(f"FROM glob({pattern})").fetchall()}
            missing = [(schema, table) for schema, table, path in files if PurePosixPath(path).name not in stored]
            if missing and not stored:
                raise UsageError(ALL_LOST.format(url=lake.url))
            lost = sorted({(schema, table) for schema, table in missing if schema in self._own_schemas})
            for schema, table in lost:
                self._empty_table(connection, schema, table)
            if lost:
                forget_schema(connection, self.write_schema)
                self.workspace.forget_loads()
                self.workspace.set_pending("restored")  # even if an erasure has removed dlt's folder
        return [f"{schema}.{table}" for schema, table in lost]

    def drop_marts(self) -> bool:
        # A full build empties it. The catalog keeps the extremes of a table for as long as the table exists.
        with self._open_to_change() as connection:
            connection.execute(f"DROP TABLE IF EXISTS warehouse.{self.name_schema('staging')}.thread_chats")
        return False

    def remove_old_versions(self) -> None:
        with self._open_to_change() as connection:
            connection.execute("CALL ducklake_expire_snapshots('warehouse', older_than => now())")
            connection.execute("CALL ducklake_cleanup_old_files('warehouse', cleanup_all => true)")
        self.remove_failed_loads()
        catalog = [self._read_lake().name]
        with self._attach_server() as connection:
            # The catalog holds small tables, and the extremes of each file.
            server.remove_old_rows(connection, catalog)
            server.renew_statistics(connection, catalog)

    def remove_failed_loads(self) -> None:
        """Remove files that failed and killed jobs left.

        Files that jobs of other accounts are writing look the same, and the folder may hold others too, so only the
        lake's files in this job's schemas are removed. From a bucket, DuckDB removes all or none: with others among
        them, this job's become empty.
        """
        lake = self._read_lake()
        if self._shares_files(lake):
            return
        with self._open_to_change() as connection:
            [(now,)] = connection.execute("SELECT now()").fetchall()
            orphans = connection.execute(
                "SELECT path FROM ducklake_delete_orphaned_files('warehouse', dry_run => true, older_than => $1)", [now]
            ).fetchall()
            own = [path for (path,) in orphans if self._is_own_file(lake, path)]
            if lake.bucket is None:
                for path in own:
                    remove(Path(path))
            elif len(own) == len(orphans):
                connection.execute("CALL ducklake_delete_orphaned_files('warehouse', older_than => $1)", [now])
            else:
                for path in own:
                    connection.execute(f"COPY (SELECT NULL AS x LIMIT 0) TO {quote_literal(path)} (FORMAT parquet)")

    def _is_own_file(self, lake: Lake, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        schemas = [f"{lake.url.removeprefix('file://').rstrip('/')}/{schema}" for schema in self._own_schemas]
        return name.startswith("ducklake-") and folder.rpartition("/")[0] in schemas

    def _shares_files(self, lake: Lake) -> bool:
        """Return whether another lake of the same server has its files in this one's folder."""
        with self._attach_server() as connection:
            names = [name for (name,) in server.query(connection, LAKES) if name != lake.name]
            urls = [server.query(connection, LAKE_URL.format(lake=quote_name(name))) for name in names]
        return any(url.rstrip("/") == lake.url.rstrip("/") for rows in urls for (url,) in rows)

    def _refuse_files_of_another_lake(self, lake: Lake) -> None:
        """Raise `UsageError` if a new lake would have its files among those of another one, which look the same."""
        with self._connect(lake.bucket) as connection:
            for schema in self._own_schemas:
                pattern = quote_literal(f"{lake.url.rstrip('/')}/{schema}/*/ducklake-*.parquet")
                if connection.execute(f"SELECT 1 FROM glob({pattern}) LIMIT 1").fetchall():  # noqa: S608
                    raise UsageError(OTHER_LAKE.format(url=lake.url, schema=schema))

    def list_out_of_reach(self) -> list[str]:
        with self._attach_server() as connection:
            copies = server.list_copies(connection)
        if self._shares_files(self._read_lake()):
            copies = ["files of failed loads, because another lake has its files in the same folder", *copies]
        return ["snapshots, versions and backups of the lake's files", *copies]

    def _describe_schema(self, connection: duckdb.DuckDBPyConnection, schema: str) -> None:
        comments = list_descriptions()
        if schema != self.dataset:  # the views of all accounts: DuckLake stores no comments on their columns
            comments = {table: {"": texts[""]} for table, texts in comments.items() if "" in texts}
        write_comments(connection, f"warehouse.{schema}", comments)

    def _explain_move(self, schemas: Sequence[tuple[str, str]]) -> str:
        return f"DuckLake cannot rename schemas: drop {', '.join(old for old, _ in schemas)} to read everything again"

    def explain(self, message: str) -> str | None:
        if server.LOCKED.search(message):
            lake = self._read_lake()
            return server.explain_lock(self.title, lake.parameters, [lake.name])
        if LOST_FILE.search(message):
            self.workspace.set_pending("lost_files")
            return LOST
        with suppress(UsageError):
            bucket = self._read_lake().bucket
            if bucket is not None and (found := bucket.explain(message)):
                return found
        return server.explain(message, self.title)

    def _link_extensions(self, bucket: Bucket | None) -> Path:
        """Return a folder from which DuckDB loads extensions."""
        top = self.workspace.folder / "extensions"
        folder = top / f"v{duckdb.__version__}" / _read_platform()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _list_extensions(bucket):
            extension = server.find_extension(name, self.title)
            link = folder / extension.name
            if not link.exists():
                link.unlink(missing_ok=True)
                link.symlink_to(extension)
        return top


def _list_extensions(bucket: Bucket | None) -> list[str]:
    return ["ducklake", "postgres_scanner", *(bucket.extensions if bucket else ())]


@cache
def _read_platform() -> str:
    """Return DuckDB's name for the platform, which is that of the folder of its extensions."""
    with duckdb.connect() as connection:
        (platform,) = connection.execute("PRAGMA platform").fetchone() or ("",)
    return str(platform)
