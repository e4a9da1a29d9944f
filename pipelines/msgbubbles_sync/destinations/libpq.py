"""Read the address of a PostgreSQL server for all clients: DuckDB, dlt (psycopg2 and ADBC) and dbt.

All of them connect through libpq. DuckDB, psycopg2 and ADBC accept a connection string with all parameters. dbt accepts
some, and libpq reads the others from environment variables. A parameter without such a variable is refused, so that no
client connects without, for example, `sslmode=verify-full`.
"""

from __future__ import annotations

from collections.abc import Mapping

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
