"""Where a warehouse's tables are: in a DuckDB file, on a PostgreSQL server, or in a lake.

Everything but the load and the transforms goes through a DuckDB connection, which also reads and writes the others: so
what is asked of a warehouse is written once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import duckdb
from filelock import FileLock
from tenacity import (
    Retrying,
    TryAgain,
    retry,
    retry_if_exception,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random,
)

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import set_umask_like, write_privately
from msgbubbles_sync.settings import ACCOUNT_NAME, setting_of_sync
from msgbubbles_sync.sql import named, quoted
from msgbubbles_sync.workspace import DATASET, Workspace

from .claims import files_of_accounts
from .combined import combine, noted_of
from .compaction import compact_if_wasteful
from .libpq import environment, read_parameters, written
from .parquet_files import LakeFiles
from .publish import clone, has_foreign_log, is_damaged, mark_of, publish
from .server import LOCKED, ask, attached, check_server, explain, explain_lock, reason_of
from .union_accounts import ACCOUNTS, MADE_AS, SHOWN, Key, union_of

if TYPE_CHECKING:
    from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials

# Of what the combined file was made.
NOTED = "combined.json"
NO_SERVER = """--destination postgres: the server cannot be reached ({why}){reason}; set its address in
dlt_config/secrets.toml, [destination.postgres] credentials = "postgresql://user:password@host:5432/database",
or as DESTINATION__POSTGRES__CREDENTIALS"""
NO_LIMIT = '[sync] memory_limit is a size like "512MB", or "none"; mend dlt_config/config.toml'
ONE_ACCOUNT = """{where} holds one account, which has no name. To go on with it as account {account}:

  {how}

Or let the accounts have another {other}"""
MANY_ACCOUNTS = """{where} shows several accounts, and only theirs are loaded: see [accounts.NAME] in
dlt_config/config.toml, or choose another {other}"""
NO_PACKAGES = '--destination {name} needs more packages: pip install "msgbubbles-sync[{name}]"'
NO_LAKE = """--destination ducklake: {why}; say in dlt_config/secrets.toml where its catalog and its files are:

  [destination.ducklake.credentials]
  catalog = "postgresql://user:password@host:5432/database"
  storage = {{ bucket_url = "/shared/folder" }}"""


class Destination(Protocol):
    """What the job asks of the place where its tables are. `title` is what people call it; the names of its schemas
    begin with `prefix`. `dataset` is the schema of what lands, and `landed` what a connection for writing calls it. A
    connection for reading calls it msgbubbles."""

    title: str
    prefix: str
    dataset: str
    landed: str
    # What dlt loads Arrow tables from. On a server it is not Parquet: ADBC cannot copy JSON from it into the columns
    # that other loads have made.
    file_format: Literal["parquet", "csv"]

    def dlt(self) -> Any:
        """The destination, for dlt."""

    def exists(self) -> bool:
        """Whether there is something to read."""

    def reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A connection for readers. Raises `UsageError` when there is none."""

    def writing(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A connection to the tables that the job writes."""

    def kept_open(self, pipeline: Any, /) -> AbstractContextManager[Any]:
        """Until the block ends, it costs `pipeline` little to open and close the tables."""

    def prepare(self) -> None:
        """Before a run: see that the tables can be reached; begin with what was published, where the job's own files
        are lost. Raises `UsageError`."""

    def publish(self, _held_marts: Sequence[str] = (), /) -> int | None:
        """Show readers what has been written; of the marts that are held, what they had before, where that is there.
        Returns how many bytes, where that can be told."""

    def is_older_than(self, minutes: float) -> bool:
        """Whether readers see something that is older, or that others have changed."""

    def explain(self, said: str, /) -> str | None:
        """Return what something that the database said means and how to fix it; null where that is not known."""

    def building(self) -> AbstractContextManager[tuple[Path, Path] | None]:
        """While dbt builds and tests the marts; what it has built counts when the block ends without an error. Where
        tables are folders, the one with what has landed, and the one for the marts."""

    def dbt(self) -> tuple[str, dict[str, str]]:
        """The target in dbt's profile, and the environment that it takes. Raises `UsageError`."""


class DuckDBFile:
    """A file that is written beside the one that readers open, and then replaces it."""

    prefix = ""
    dataset = landed = DATASET
    file_format: Literal["parquet", "csv"] = "parquet"

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.title = str(workspace.database)

    def dlt(self) -> Any:
        import dlt
        from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials

        return dlt.destinations.duckdb(DuckDbCredentials(str(self._workspace.work), global_config=self.options()))

    def exists(self) -> bool:
        return self._workspace.database.exists()

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            connection = duckdb.connect(self.title, read_only=True)
        except duckdb.Error as error:
            raise UsageError(f"{self.title} cannot be read as a DuckDB database ({type(error).__name__})") from None
        with connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with duckdb.connect(str(self._workspace.work), config=self.options()) as connection:
            yield connection

    def building(self) -> AbstractContextManager[None]:
        return nullcontext()

    def kept_open(self, pipeline: Any) -> AbstractContextManager[Any]:
        # Every job of a load opens the file, and whoever closes it last writes all of it that has changed to the disk.
        connection: AbstractContextManager[Any] = pipeline.sql_client()
        return connection

    def prepare(self) -> None:
        workspace, work = self._workspace, self._workspace.work
        if workspace.account is not None and workspace.combined.exists() and _is_of_many(workspace.combined) is False:
            how = f"mv {workspace.combined} {workspace.database}"
            raise UsageError(
                ONE_ACCOUNT.format(where=workspace.combined, account=workspace.account, how=how, other="--database")
            )
        if self.exists() and _is_of_many(workspace.database):
            raise UsageError(MANY_ACCOUNTS.format(where=self.title, other="--database"))
        if workspace.account is not None:
            # That of a warehouse of one account which has got a name.
            for end in (".wal", ""):
                with suppress(FileNotFoundError):
                    (workspace.folder / f"{workspace.combined.name}{end}").rename(
                        workspace.folder / f"{work.name}{end}"
                    )
        if work.exists():
            return
        workspace.forget_loads()  # which are of rows that are lost
        if self.exists() and not is_damaged(workspace.database, self.options()):
            # A kill in the middle must not leave half a file under the name that counts.
            copy = work.with_suffix(".copying")
            clone(workspace.database, copy)
            copy.replace(work)

    def publish(self, held_marts: Sequence[str] = ()) -> int | None:
        compact_if_wasteful(self._workspace.work, self._workspace.folder / "compacted", self.options())
        size = publish(self._workspace.work, self._workspace.database, held_marts)
        write_privately(self._published, json.dumps(mark_of(self._workspace.database)))
        if self._workspace.account is not None:
            self._combine()
        return size

    @property
    def _published(self) -> Path:
        """The mark of what was published last."""
        return self._workspace.folder / "published.json"

    def _is_as_published(self) -> bool:
        """Whether nobody has written to what readers open, or replaced it."""
        workspace = self._workspace
        files = {workspace.database: noted_of(self._published)}
        if workspace.account is not None:
            noted = noted_of(Workspace.from_path(workspace.combined).folder / NOTED)
            files[workspace.combined] = noted[-1] if isinstance(noted, list) and noted else None
        # A version that noted no marks may have published last.
        return all(
            not has_foreign_log(file) and (mark is None or mark == mark_of(file)) for file, mark in files.items()
        )

    def _combine(self) -> None:
        """Show what was published beside the other accounts."""
        whole = Workspace.from_path(self._workspace.combined)
        whole.make_folders()
        with FileLock(whole.folder / "combine.lock"):
            files = files_of_accounts(self._workspace)
            combine(files, str(self._workspace.account), whole.database, whole.folder / NOTED, self.options())

    def options(self) -> dict[str, Any]:
        """Return DuckDB's options of every connection to the file that is written: two with different ones cannot be
        open at once. Raises `UsageError`."""
        limit = str(setting_of_sync("memory_limit", "none"))
        if limit == "none":
            return {}
        if not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", limit):
            raise UsageError(NO_LIMIT)
        return {"memory_limit": limit}

    def explain(self, _said: str) -> str | None:
        return None

    def is_older_than(self, minutes: float) -> bool:
        if not (self.exists() and self._is_as_published()):
            return True
        return time.time() - self._workspace.database.stat().st_mtime > minutes * 60

    def dbt(self) -> tuple[str, dict[str, str]]:
        return "duckdb", {"MSGBUBBLES_DUCKDB_PATH": str(self._workspace.work)}


class Shared(ABC):
    """Tables that are elsewhere. Nothing is published: readers see each table as soon as it is written."""

    title: str
    file_format: Literal["parquet", "csv"] = "parquet"
    # What to choose another of, where this one is taken; and how to give the schemas an account's name.
    _another: str
    _renamed: str

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.prefix = workspace.prefix
        self.dataset = f"{self.prefix}{DATASET}"
        self.landed = f"warehouse.{self.dataset}"

    @abstractmethod
    def _attached(self, *options: str) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A connection that has the tables attached, as `warehouse`, with these options more."""

    @abstractmethod
    def explain(self, said: str) -> str | None:
        """See `Destination`."""

    @abstractmethod
    def _show(self, connection: duckdb.DuckDBPyConnection, views: Mapping[Key, str]) -> None:
        """Make these views, by schema and name, in the place of those that are there, all or none."""

    def exists(self) -> bool:
        with self._attached("READ_ONLY") as connection:
            return self.dataset in _schemas(connection)

    def reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self._of_account("READ_ONLY")

    def writing(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self._of_account()

    @contextmanager
    def _of_account(self, *options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """The schemas of one account have the names there that those of an only one have."""
        with self._attached(*options) as connection:
            if self.prefix:
                connection.execute("BEGIN")  # the job may be making and removing tables meanwhile
                for schema, table in _columns(connection).get(self.prefix, {}):
                    connection.execute(f"CREATE SCHEMA IF NOT EXISTS memory.{schema}")
                    connection.execute(
                        f"CREATE VIEW memory.{schema}.{named(table)} AS "
                        f"FROM warehouse.{self.prefix}{schema}.{named(table)}"
                    )
                connection.execute("COMMIT")
                connection.execute("USE memory")
            yield connection

    def prepare(self) -> None:
        with self._attached() as connection:
            tables = _columns(connection).get("", {})
            if self.dataset not in _schemas(connection):
                self._workspace.forget_loads()
        is_of_many = ACCOUNTS in tables
        if self.prefix and tables and not is_of_many:
            how = self._renamed.format(prefix=self.prefix)
            raise UsageError(
                ONE_ACCOUNT.format(where=self.title, account=self._workspace.account, how=how, other=self._another)
            )
        if not self.prefix and is_of_many:
            raise UsageError(MANY_ACCOUNTS.format(where=self.title, other=self._another))

    def building(self) -> AbstractContextManager[None]:
        return nullcontext()

    def kept_open(self, _pipeline: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def publish(self, _held_marts: Sequence[str] = ()) -> int | None:
        if self.prefix:
            self._unite()
        return None

    # The jobs of other accounts do the same, it may be at the same time; some of what they do excludes the others.
    @retry(
        retry=retry_if_exception(lambda error: isinstance(error, TryAgain) or _may_pass(error)),
        stop=stop_after_attempt(20), wait=wait_random(0, 1), reraise=True,
    )  # fmt: skip
    def _unite(self) -> None:
        """See that there is a view of all accounts for each table that they have. What another job has made meanwhile
        may have been made without what is here: so it is looked at again until nothing is left to do."""
        for _ in range(2):
            with self._attached() as connection:
                views = self._views_to_make(connection)
                if not views:
                    return
                self._show(connection, views)
        raise TryAgain

    def _views_to_make(self, connection: duckdb.DuckDBPyConnection) -> dict[Key, str]:
        """All of them, where one is not there or not as it should be."""
        columns = _columns(connection)
        shown = columns.pop("", {})
        accounts = {prefix.removesuffix("_"): tables for prefix, tables in columns.items()}
        wanted = union_of(accounts, lambda account, schema, table: f"{account}_{schema}.{named(table)}", shown)
        # The databases write a view's query down in words of their own, so it is known by a digest.
        digest = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()
        wanted[MADE_AS] = (["digest"], f"SELECT {quoted(digest)} AS digest")
        made_as: list[tuple[str]] = []
        if MADE_AS in shown:
            made_as = connection.execute(f"SELECT digest FROM warehouse.{'.'.join(MADE_AS)}").fetchall()  # noqa: S608
        if made_as == [(digest,)] and all(shown.get(key) == names for key, (names, _) in wanted.items()):
            return {}
        return {key: query for key, (_, query) in wanted.items()}

    def is_older_than(self, minutes: float) -> bool:
        # The record of a run costs a row there, not a new file.
        return minutes >= 0


def _may_pass(error: BaseException) -> bool:
    """Whether what the database refused may be taken soon. A lock has been waited for long enough."""
    return isinstance(error, duckdb.Error) and "lock timeout" not in str(error)


def _schemas(connection: duckdb.DuckDBPyConnection) -> set[str]:
    found = connection.execute("SELECT schema_name FROM duckdb_schemas() WHERE database_name = 'warehouse'").fetchall()
    return {name for (name,) in found}


def _columns(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[tuple[str, str], list[str]]]:
    """By the prefix of its schemas, the columns of an account's tables that readers look at; those of all accounts
    together, or of the only one, have no prefix."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    rows = connection.execute(
        "SELECT schema_name, table_name, column_name FROM duckdb_columns() WHERE database_name = 'warehouse' "
        "ORDER BY schema_name, table_name, column_index"
    ).fetchall()
    for schema_name, table, column in rows:
        match = re.fullmatch(rf"((?:{ACCOUNT_NAME.pattern}_)?)(msgbubbles|marts|staging)", schema_name)
        if match:
            found.setdefault(match[1], {}).setdefault((match[2], table), []).append(column)
    # dlt's own schema has a name that looks like one of an account's.
    return {prefix: tables for prefix, tables in found.items() if any(schema == DATASET for schema, _ in tables)}


class Postgres(Shared):
    """A database on a server."""

    title = "postgres"
    file_format: Literal["parquet", "csv"] = "csv"
    _another = "database on the server"
    _renamed = "rename the schemas msgbubbles, msgbubbles_staging, staging and marts to {prefix}msgbubbles and so on"

    def dlt(self) -> Any:
        from .server_dlt import Server, server_credentials

        return Server(server_credentials(self._parameters()))

    @contextmanager
    def _attached(self, *options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(attached(self._parameters(), _scanner(self.title), *options))
            except duckdb.Error as error:
                raise UsageError(NO_SERVER.format(why=type(error).__name__, reason=reason_of(error))) from None
            yield connection

    def prepare(self) -> None:
        with self._attached() as connection:
            check_server(connection, self._schemas, self.title)
        super().prepare()

    @property
    def _schemas(self) -> list[str]:
        own = [self.dataset, f"{self.dataset}_staging", f"{self.prefix}staging", f"{self.prefix}marts"]
        return [*own, *(SHOWN if self.prefix else ())]

    def explain(self, said: str) -> str | None:
        if LOCKED.search(said):
            return explain_lock(self.title, self._parameters(), _scanner(self.title), self._schemas)
        return explain(said, self.title)

    def _show(self, connection: duckdb.DuckDBPyConnection, views: Mapping[Key, str]) -> None:
        statements = ["BEGIN", "SELECT pg_advisory_xact_lock(hashtext('msgbubbles accounts'))"]
        statements += [f"CREATE SCHEMA IF NOT EXISTS {schema}" for schema in sorted({schema for schema, _ in views})]
        statements += [REPLACE_VIEW.format(view=f"{key[0]}.{named(key[1])}", query=views[key]) for key in sorted(views)]
        connection.execute(f"CALL postgres_execute('warehouse', {quoted('; '.join([*statements, 'COMMIT']))})")

    def dbt(self) -> tuple[str, dict[str, str]]:
        return "postgres", environment(self._parameters())

    def _parameters(self) -> dict[str, str]:
        found = read_parameters("destination.postgres.credentials")
        if found is None:
            raise UsageError(NO_SERVER.format(why="no usable credentials", reason=""))
        return found


# In place, so that what others have built on the view stays; only one with other columns has to go first.
REPLACE_VIEW = """DO $view$ BEGIN
    CREATE OR REPLACE VIEW {view} AS {query};
EXCEPTION WHEN invalid_table_definition THEN
    DROP VIEW {view} CASCADE;
    CREATE VIEW {view} AS {query};
END $view$"""


class DuckLake(Shared):
    """Parquet files in a folder that many machines see, and a catalog of them on a PostgreSQL server: nobody waits for
    anybody."""

    title = "ducklake"
    _another = "ducklake_name"
    _renamed = "copy its schemas to {prefix}msgbubbles and so on, and drop them: DuckLake cannot rename any"

    def dlt(self) -> Any:
        import dlt

        lake = self._credentials()
        lake.global_config = {"extension_directory": str(self._extensions())}
        return dlt.destinations.ducklake(lake)

    @contextmanager
    def _attached(self, *options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        lake = self._credentials()
        address = quoted(f"ducklake:postgres:{written(lake.catalog.query or {})}")
        where = f"DATA_PATH {quoted(lake.storage.bucket_url)}, METADATA_SCHEMA {quoted(lake.ducklake_name)}"
        with duckdb.connect(config={"extension_directory": str(self._extensions())}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            try:
                # Two jobs may be the first at once, and only one of them makes the lake; a server that is not there is
                # told of at once.
                for attempt in Retrying(
                    retry=retry_if_not_exception_type(duckdb.IOException),
                    stop=stop_after_attempt(10), wait=wait_random(0, 0.5), reraise=True,
                ):  # fmt: skip
                    with attempt:
                        connection.execute(f"ATTACH {address} AS warehouse ({', '.join([where, *options])})")
            except duckdb.Error as error:
                raise UsageError(
                    NO_LAKE.format(why=f"it cannot be opened ({type(error).__name__}){reason_of(error)}")
                ) from None
            connection.execute("USE warehouse")
            yield connection

    @contextmanager
    def _catalog(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that has the database of the catalog attached, as `warehouse`."""
        try:
            with attached(self._credentials().catalog.query or {}, _scanner(self.title)) as connection:
                yield connection
        except duckdb.Error as error:
            raise UsageError(
                NO_LAKE.format(why=f"its catalog cannot be opened ({type(error).__name__}){reason_of(error)}")
            ) from None

    def exists(self) -> bool:
        # A lake that nobody has made cannot be opened to be read.
        table = quoted(f"{self._credentials().ducklake_name}.ducklake_metadata")
        with self._catalog() as connection:
            is_made = ask(connection, f"SELECT to_regclass({table}) IS NOT NULL") == [(True,)]
        return is_made and super().exists()

    def prepare(self) -> None:
        lake = self._credentials()
        with self._catalog() as connection:
            check_server(connection, [lake.ducklake_name], self.title)
        with suppress(FileNotFoundError):  # made by the first who writes, or on no disk
            set_umask_like(Path(lake.storage.bucket_url.removeprefix("file://")))
        super().prepare()
        with self._attached() as connection:
            # dbt begins in this schema.
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS warehouse.{self.prefix}staging")

    def _show(self, connection: duckdb.DuckDBPyConnection, views: Mapping[Key, str]) -> None:
        connection.execute("BEGIN")
        try:
            for schema in sorted({schema for schema, _ in views}):
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS warehouse.{schema}")
            for (schema, table), query in views.items():
                connection.execute(f"CREATE OR REPLACE VIEW warehouse.{schema}.{named(table)} AS {query}")
            connection.execute("COMMIT")
        except duckdb.Error:
            with suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            raise

    def dbt(self) -> tuple[str, dict[str, str]]:
        lake = self._credentials()
        known = dict(lake.catalog.query or {})
        # Has no variable of libpq's.
        address = {name: known.pop(name) for name in ("dbname", "keepalives_idle") if name in known}
        return "ducklake", {
            "MSGBUBBLES_LAKE": lake.ducklake_name,
            # The rest libpq takes from the environment, so that no message of dbt can quote it.
            "MSGBUBBLES_LAKE_CATALOG": f"ducklake:postgres:{written(address)}",
            "MSGBUBBLES_LAKE_FILES": lake.storage.bucket_url,
            "MSGBUBBLES_EXTENSIONS": str(self._extensions()),
            **environment(known),
        }

    def explain(self, said: str) -> str | None:
        if LOCKED.search(said):
            lake = self._credentials()
            return explain_lock(self.title, lake.catalog.query or {}, _scanner(self.title), [lake.ducklake_name])
        return explain(said, self.title)

    def _credentials(self) -> DuckLakeCredentials:
        import dlt
        from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials

        from .server_dlt import catalog_credentials

        section = "destination.ducklake.credentials"
        catalog = read_parameters(f"{section}.catalog")
        folder: Any = dlt.secrets.get(f"{section}.storage.bucket_url")
        name: Any = dlt.secrets.get(f"{section}.ducklake_name") or "ducklake"
        if catalog is None:
            raise UsageError(NO_LAKE.format(why="it has no catalog on a PostgreSQL server"))
        if not isinstance(folder, str) or not folder:
            raise UsageError(NO_LAKE.format(why="it has no folder for its files"))
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", str(name)):
            raise UsageError(NO_LAKE.format(why="ducklake_name is letters, digits and underscores"))
        return DuckLakeCredentials(str(name), catalog=catalog_credentials(catalog), storage=folder)

    def _extensions(self) -> Path:
        """A folder from which DuckDB loads the extensions that an ATTACH names."""
        with duckdb.connect() as connection:
            (platform,) = connection.execute("PRAGMA platform").fetchone() or ("",)
        top = self._workspace.folder / "extensions"
        folder = top / f"v{duckdb.__version__}" / platform
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("ducklake", "postgres_scanner"):
            extension = _extension(name, self.title)
            link = folder / extension.name
            if not link.exists():
                link.unlink(missing_ok=True)
                link.symlink_to(extension)
        return top


def _is_of_many(database: Path) -> bool | None:
    """Whether a file shows several accounts; null where it cannot be read, and is replaced."""
    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            found = connection.execute(
                "SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'msgbubbles' AND table_name = 'accounts'"
            )
            return found.fetchall() != [(0,)]
    except duckdb.Error:
        return None


def _scanner(title: str) -> Path:
    return _extension("postgres_scanner", title)


def _extension(name: str, title: str) -> Path:
    """The file of an extension of DuckDB, which comes as a package: nothing is downloaded while a job runs."""
    found = importlib.util.find_spec(f"duckdb_extension_{name}")
    if found is None or found.origin is None:
        raise UsageError(NO_PACKAGES.format(name=title))
    return Path(found.origin).parent / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"


DESTINATIONS: dict[str, Callable[[Workspace], Destination]] = {
    "duckdb": DuckDBFile,
    "postgres": Postgres,
    "ducklake": DuckLake,
    "filesystem": LakeFiles,
}


def destination_of(workspace: Workspace) -> Destination:
    """Where the tables of a place are."""
    return DESTINATIONS[workspace.destination](workspace)
