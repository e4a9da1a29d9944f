"""How dlt reaches a PostgreSQL server: as `libpq` says. The URLs that dlt would write turn a space into a plus sign,
which libpq takes for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlt.common.configuration.specs import ConnectionStringCredentials
from dlt.destinations.impl.postgres.configuration import PostgresCredentials

from .libpq import written


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
