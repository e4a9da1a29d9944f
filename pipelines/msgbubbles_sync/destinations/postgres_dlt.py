"""Build dlt's destination for a PostgreSQL server.

dlt's URLs turn a space into a plus sign, and its COPY turns an empty text into null. Here libpq gets its own connection
string, and COPY uses its own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlt.common.storages.file_storage import FileStorage
from dlt.destinations import postgres
from dlt.destinations.impl.postgres.configuration import PostgresCredentials
from dlt.destinations.impl.postgres.postgres import PostgresClient, PostgresCsvCopyJob

from .libpq import fill_credentials, format_dsn


class Server(postgres):
    """A PostgreSQL destination that loads empty texts as such."""

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
    """Copy a CSV file of Arrow, which quotes empty texts and not nulls, as COPY expects by default."""

    def run(self) -> None:
        client = self._job_client.sql_client
        with FileStorage.open_zipsafe_ro(self._file_path, "rb") as file, client.begin_transaction():
            names = file.readline().decode().strip().split(",")
            columns = ", ".join(client.escape_column_name(name.strip('"')) for name in names)
            table = client.make_qualified_table_name(self.load_table_name)
            with client.native_connection.cursor() as cursor:
                cursor.copy_expert(f"COPY {table} ({columns}) FROM STDIN WITH (FORMAT CSV, ENCODING 'utf-8')", file)


class ServerCredentials(PostgresCredentials):
    """Credentials that give psycopg2 and ADBC libpq's connection string."""

    def to_native_representation(self) -> str:
        return format_dsn(self.query or {})


def build_postgres(parameters: Mapping[str, str]) -> Server:
    """Return dlt's destination for a server with these parameters of libpq."""
    credentials = ServerCredentials()
    fill_credentials(credentials, parameters)
    return Server(credentials)
