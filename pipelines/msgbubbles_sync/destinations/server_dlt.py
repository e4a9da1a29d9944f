"""How dlt reaches a PostgreSQL server, as `libpq` says, and how it copies rows there.

The URLs that dlt would write turn a space into a plus sign, which libpq takes for one; and its COPY turns an empty text
into null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlt.common.configuration.specs import ConnectionStringCredentials
from dlt.common.storages.file_storage import FileStorage
from dlt.destinations import postgres
from dlt.destinations.impl.postgres.configuration import PostgresCredentials
from dlt.destinations.impl.postgres.postgres import PostgresClient, PostgresCsvCopyJob

from .libpq import written


class Server(postgres):
    """The destination `postgres`, with empty texts."""

    @property
    def destination_type(self) -> str:
        return "dlt.destinations.postgres"  # as it is in the state of earlier runs

    @property
    def client_class(self) -> type[PostgresClient]:
        return _Client


class _Client(PostgresClient):
    def create_load_job(self, table: Any, file_path: str, load_id: str, restore: bool = False) -> Any:
        job = super().create_load_job(table, file_path, load_id, restore)
        return _Copy(file_path) if isinstance(job, PostgresCsvCopyJob) else job


class _Copy(PostgresCsvCopyJob):
    """In a file that Arrow writes, an empty text is in quotes and null is not, as COPY reads it by itself."""

    def run(self) -> None:
        client = self._job_client.sql_client
        with FileStorage.open_zipsafe_ro(self._file_path, "rb") as file, client.begin_transaction():
            names = file.readline().decode().strip().split(",")
            columns = ", ".join(client.escape_column_name(name.strip('"')) for name in names)
            table = client.make_qualified_table_name(self.load_table_name)
            with client.native_connection.cursor() as cursor:
                cursor.copy_expert(f"COPY {table} ({columns}) FROM STDIN WITH (FORMAT CSV, ENCODING 'utf-8')", file)


class ServerCredentials(PostgresCredentials):
    """The address of a server, for psycopg2 and ADBC."""

    def to_native_representation(self) -> str:
        return written(self.query or {})


class CatalogCredentials(ConnectionStringCredentials):
    """The address of a lake's catalog, for DuckDB."""

    def to_url(self) -> Any:
        return _Address(written(self.query or {}))


class _Address:
    def __init__(self, text: str) -> None:
        self._text = text

    def render_as_string(self, hide_password: bool = True) -> str:
        """Return the address as it is put between quotes in an ATTACH statement; nothing that may be shown."""
        return "" if hide_password else self._text.replace("'", "''")


def server_credentials(parameters: Mapping[str, str]) -> ServerCredentials:
    found = ServerCredentials()
    _fill(found, parameters)
    return found


def catalog_credentials(parameters: Mapping[str, str]) -> CatalogCredentials:
    found = CatalogCredentials()
    found.drivername = "postgres"
    _fill(found, parameters)
    return found


def _fill(credentials: ConnectionStringCredentials, parameters: Mapping[str, str]) -> None:
    credentials.host, credentials.port = parameters["host"], int(parameters["port"])
    credentials.username, credentials.password = parameters["user"], parameters["password"]
    credentials.database, credentials.query = parameters["dbname"], dict(parameters)
    credentials.resolve()
