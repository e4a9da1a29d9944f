"""Read the address of a PostgreSQL server from dlt's configuration, and pass it to all clients.

These are DuckDB, dlt (psycopg2 and ADBC) and dbt, and all of them connect through libpq. DuckDB, psycopg2 and ADBC
accept a connection string with all parameters. dbt accepts some, and libpq reads the others from environment variables.
A parameter without such a variable is refused, so that no client connects without, for example,
`sslmode=verify-full`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from msgbubbles.source.lazy_dlt import dlt, sql_alchemy
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import SyncSettings

# The parameters that reach all clients.
PARAMETERS = frozenset({
    "host", "hostaddr", "port", "user", "password", "dbname", "passfile", "connect_timeout", "application_name",
    "options", "client_encoding", "keepalives_idle", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcertmode",
    "sslcrl", "sslcrldir", "sslsni", "sslnegotiation", "sslcompression", "ssl_min_protocol_version",
    "ssl_max_protocol_version", "channel_binding", "require_auth", "requirepeer", "gssencmode", "gssdelegation",
    "gsslib", "krbsrvname", "target_session_attrs", "load_balance_hosts",
})  # fmt: skip
# Environment variables that are not `PG` and the parameter's name without underscores. dbt's profile reads the last.
VARIABLES = {
    "dbname": "PGDATABASE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "application_name": "PGAPPNAME",
    "keepalives_idle": "MSGBUBBLES_KEEPALIVES_IDLE",
}
# dlt's names of parameters.
ALIASES = {"username": "user", "database": "dbname"}
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Used if neither the address nor libpq's environment variables set them.
DEFAULTS = {"port": "5432", "connect_timeout": "15", "application_name": "msgbubbles"}


def read_parameters(section: str, settings: SyncSettings) -> dict[str, str] | None:
    """Read libpq's parameters from a section of the configuration; null if no address is configured.

    The section is a URL, or a table with dlt's keys and libpq's, which may also be in its `query`. The environment
    takes precedence over the files.

    Raises `UsageError` for a parameter that cannot reach all clients, or has an invalid value.
    """
    *sections, key = section.split(".")
    url: dict[str, object] = {}
    table: dict[str, object] = {}
    # Several files may each have a part.
    for provider in reversed(dlt.config.config_providers):
        value, _ = provider.get_value(key, Any, "", *sections)
        if isinstance(value, str):
            url = _read_url(value)
        elif isinstance(value, dict):
            table |= _flatten(section, value)
    prefix = f"{section.replace('.', '__').upper()}__"
    variables = {name[len(prefix) :].lower(): value for name, value in os.environ.items() if name.startswith(prefix)}
    given = table | _flatten(section, url) | _flatten(section, variables)
    values = {name: _check(section, name, value) for name, value in given.items()}
    return _complete(values, settings) if {"host", "user", "dbname"} <= values.keys() else None


def _read_url(url: str) -> dict[str, object]:
    try:
        parts = sql_alchemy.make_url(url)._asdict()  # type: ignore[attr-defined]
    except Exception:  # the parser's message quotes the password
        return {}
    return dict(parts) if str(parts["drivername"]).startswith("postgres") else {}


def _flatten(section: str, given: Mapping[str, object]) -> dict[str, object]:
    """Return parameters by libpq's names. Those in `query` take precedence."""
    query = given.get("query") or {}
    if isinstance(query, str):
        try:
            query = json.loads(query)
        except ValueError:
            query = None
    if not isinstance(query, Mapping):
        raise UsageError(
            f'{section}.query must be a table of libpq\'s parameters, for example {{"sslmode": "require"}}'
        )
    rest: dict[str, object] = {name: value for name, value in given.items() if name not in ("query", "drivername")}
    return {ALIASES.get(name, name): value for name, value in {**rest, **query}.items() if value is not None}


def _check(section: str, name: str, value: object) -> str:
    if name not in PARAMETERS:
        raise UsageError(
            f"{section}: the parameter {name} cannot be passed to all clients of the server (DuckDB, dlt and dbt); "
            "remove it"
        )
    text = str(int(value)) if isinstance(value, bool) else str(value)
    if isinstance(value, Mapping | list | tuple) or "\0" in text:
        raise UsageError(f"{section}: the parameter {name} must be a single text; set it once")
    if name == "sslmode" and text not in SSL_MODES:
        raise UsageError(f"{section}: sslmode must be one of {', '.join(SSL_MODES)}")
    if name in ("port", "connect_timeout", "keepalives_idle") and not text.isdecimal():
        raise UsageError(f"{section}: {name} must be a whole number")
    if name == "client_encoding" and text.lower().replace("-", "") not in ("utf8", "unicode"):
        raise UsageError(f"{section}: client_encoding must be utf8; remove it")
    return text


def _complete(values: Mapping[str, str], settings: SyncSettings) -> dict[str, str]:
    """Add defaults, and the timeouts of the job's sessions."""
    inherited = {name: value for name in DEFAULTS if (value := os.environ.get(get_variable(name)))}
    defaults = DEFAULTS | inherited | {"password": os.environ.get("PGPASSWORD", ""), "client_encoding": "UTF8"}
    statement, lock = settings.statement_timeout_seconds, settings.lock_timeout_seconds
    seconds = {"lock": lock, "statement": statement, "idle_in_transaction_session": statement}
    limits = [f"-c {name}_timeout={1000 * limit}" for name, limit in seconds.items()]
    # If an option is set twice, the server uses the later value.
    options = ["-c TimeZone=UTC", *limits, values.get("options", os.environ.get("PGOPTIONS", ""))]
    return defaults | dict(values) | {"options": " ".join(options).strip()}


def fill_credentials(credentials: Any, parameters: Mapping[str, str]) -> None:
    """Set the fields of dlt's credentials, with all parameters in `query`."""
    credentials.host, credentials.port = parameters["host"], int(parameters["port"])
    credentials.username, credentials.password = parameters["user"], parameters["password"]
    credentials.database, credentials.query = parameters["dbname"], dict(parameters)
    credentials.resolve()


def get_variable(parameter: str) -> str:
    """Return the environment variable of a parameter."""
    return VARIABLES.get(parameter, f"PG{parameter.replace('_', '').upper()}")


def format_dsn(parameters: Mapping[str, str]) -> str:
    """Format parameters as a connection string of libpq."""
    escaped = {name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in parameters.items()}
    return " ".join(f"{name}='{value}'" for name, value in escaped.items() if value)


def build_environment(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that pass the parameters to dbt."""
    return {get_variable(name): value for name, value in parameters.items()}
