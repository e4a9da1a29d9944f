"""Build dlt's credentials for a lake from the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import dlt
from dlt.common.configuration.specs import ConnectionStringCredentials
from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import SyncSettings

from .ducklake import NO_LAKE
from .libpq import fill_credentials, format_dsn, read_parameters

SECTION = "destination.ducklake.credentials"


class CatalogCredentials(ConnectionStringCredentials):
    """Give DuckDB the address of a lake's catalog."""

    def to_url(self) -> Any:
        return _Address(format_dsn(self.query or {}))


class _Address:
    def __init__(self, text: str) -> None:
        self._text = text

    def render_as_string(self, hide_password: bool = True) -> str:
        """Return the address for an ATTACH statement, with quotes doubled; empty for messages."""
        return "" if hide_password else self._text.replace("'", "''")


def read_credentials(settings: SyncSettings) -> DuckLakeCredentials:
    """Read the address of the lake from the configuration. Raises `UsageError`."""
    parameters = read_parameters(f"{SECTION}.catalog", settings)
    folder: Any = dlt.secrets.get(f"{SECTION}.storage.bucket_url")
    name: Any = dlt.secrets.get(f"{SECTION}.ducklake_name") or "ducklake"
    if parameters is None:
        raise UsageError(NO_LAKE.format(why="it has no catalog on a PostgreSQL server"))
    if not isinstance(folder, str) or not folder:
        raise UsageError(NO_LAKE.format(why="it has no folder for its files"))
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", str(name)):
        raise UsageError(NO_LAKE.format(why="ducklake_name may have lower-case letters, digits and underscores only"))
    return DuckLakeCredentials(str(name), catalog=_build_catalog(parameters), storage=folder)


def _build_catalog(parameters: Mapping[str, str]) -> CatalogCredentials:
    catalog = CatalogCredentials()
    catalog.drivername = "postgres"
    fill_credentials(catalog, parameters)
    return catalog
