"""Where a warehouse's tables are: in a DuckDB file, or on a PostgreSQL server.

Everything but the load and the transforms goes through a DuckDB connection, which also reads and writes a server: so
what is asked of a warehouse is written once.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import duckdb

from .configuration import configuration_folder, from_environment, section
from .place import PIPELINE, Place, UsageError
from .publish import clone, publish, quoted

if TYPE_CHECKING:
    from dlt.destinations.impl.postgres.configuration import PostgresCredentials

NO_SERVER = """--destination postgres: the server cannot be reached ({why}); set its address in
dlt_config/secrets.toml, [destination.postgres] credentials = "postgresql://user:password@host:5432/database",
or as DESTINATION__POSTGRES__CREDENTIALS"""
NO_LIMIT = '[sync] memory_limit is a size like "512MB", or "none"; mend dlt_config/config.toml'
NO_PACKAGES = '--destination postgres needs more packages: pip install "msgbubbles-sync[postgres]"'


class Destination(Protocol):
    """What the job asks of the place where its tables are. `title` is what people call it."""

    title: str

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
        """Whether readers see something that is older."""

    def dbt(self) -> tuple[str, dict[str, str]]:
        """The target in dbt's profile, and the environment that it takes."""


class DuckDBFile:
    """A file that is written beside the one that readers open, and then replaces it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.title = str(place.database)

    def dlt(self) -> Any:
        import dlt
        from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials

        return dlt.destinations.duckdb(DuckDbCredentials(str(self._place.work), global_config=self._options()))

    def exists(self) -> bool:
        return self._place.database.exists()

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
        with duckdb.connect(str(self._place.work), config=self._options()) as connection:
            yield connection

    def kept_open(self, pipeline: Any) -> AbstractContextManager[Any]:
        # Every job of a load opens the file, and whoever closes it last writes all of it that has changed to the disk.
        connection: AbstractContextManager[Any] = pipeline.sql_client()
        return connection

    def prepare(self) -> None:
        work = self._place.work
        if work.exists():
            return
        # What dlt remembers may speak of rows that were in the lost file only.
        shutil.rmtree(self._place.folder / "dlt" / PIPELINE, ignore_errors=True)
        if self.exists():
            # A kill in the middle must not leave half a file under the name that counts.
            copy = work.with_suffix(".copying")
            clone(self._place.database, copy)
            copy.replace(work)

    def publish(self, held_marts: Sequence[str] = ()) -> int | None:
        with self.writing() as connection:
            connection.execute("CHECKPOINT")
        return publish(self._place.work, self._place.database, held_marts)

    def _options(self) -> dict[str, Any]:
        """Of every connection to the file that is written: two with different ones cannot be open at once."""
        settings = section(configuration_folder() / "config.toml", "sync") | from_environment("sync", ["memory_limit"])
        limit = str(settings.get("memory_limit", "none"))
        if limit == "none":
            return {}
        if not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", limit):
            raise UsageError(NO_LIMIT)
        return {"memory_limit": limit}

    def is_older_than(self, minutes: float) -> bool:
        return not self.exists() or time.time() - self._place.database.stat().st_mtime > minutes * 60

    def dbt(self) -> tuple[str, dict[str, str]]:
        return "duckdb", {"MSGBUBBLES_DUCKDB_PATH": str(self._place.work)}


class Postgres:
    """A database on a server. Nothing is published: readers see each table as soon as it is written."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.title = "postgres"

    def dlt(self) -> Any:
        import dlt

        return dlt.destinations.postgres(self._credentials())

    def exists(self) -> bool:
        with self.reading() as connection:
            found = connection.execute("SELECT count(*) FROM duckdb_schemas() WHERE schema_name = 'msgbubbles'")
            return found.fetchall() != [(0,)]

    @contextmanager
    def _attached(self, options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        found = importlib.util.find_spec("duckdb_extension_postgres_scanner")
        if found is None or found.origin is None:
            raise UsageError(NO_PACKAGES)
        version = f"v{duckdb.__version__}"
        extension = Path(found.origin).parent / "extensions" / version / "postgres_scanner.duckdb_extension"
        values = {name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in self._libpq().items()}
        address = quoted(" ".join(f"{name}='{value}'" for name, value in values.items() if value))
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            try:
                connection.execute(f"LOAD {quoted(str(extension))}")
                connection.execute(f"ATTACH {address} AS warehouse (TYPE postgres{options})")
            except duckdb.Error as error:
                # What it says would quote the password.
                raise UsageError(NO_SERVER.format(why=type(error).__name__)) from None
            connection.execute("USE warehouse")
            yield connection

    def reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self._attached(", READ_ONLY")

    def writing(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self._attached("")

    def kept_open(self, _pipeline: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def prepare(self) -> None:
        # What is lost here, dlt restores from the server.
        with self.writing():
            pass

    def publish(self, _held_marts: Sequence[str] = ()) -> int | None:
        return None

    def is_older_than(self, minutes: float) -> bool:
        # The record of a run costs a row there, not a new file.
        return minutes >= 0

    def dbt(self) -> tuple[str, dict[str, str]]:
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        return "postgres", {names[name]: value for name, value in self._libpq().items()}

    def _credentials(self) -> PostgresCredentials:
        import dlt
        from dlt.common.configuration.exceptions import ConfigurationException
        from dlt.destinations.impl.postgres.configuration import PostgresCredentials

        try:
            found = dlt.secrets.get("destination.postgres.credentials", PostgresCredentials)
        except (ConfigurationException, ValueError):
            found = None
        if not isinstance(found, PostgresCredentials) or found.is_partial():
            raise UsageError(NO_SERVER.format(why="no usable credentials"))
        return found

    def _libpq(self) -> dict[str, str]:
        known = self._credentials()
        query = dict(known.query or {})
        return {
            "host": str(query.get("host") or known.host),
            "port": str(known.port or 5432),
            "user": known.username or "",
            "password": known.password or "",
            "dbname": known.database or "",
        }


DESTINATIONS: dict[str, Callable[[Place], Destination]] = {"duckdb": DuckDBFile, "postgres": Postgres}


def destination_of(place: Place) -> Destination:
    """Where the tables of a place are."""
    return DESTINATIONS[place.destination](place)
