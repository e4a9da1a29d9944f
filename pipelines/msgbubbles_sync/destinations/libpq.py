"""Read the address of a PostgreSQL server for all clients: DuckDB, dlt (psycopg2 and ADBC) and dbt.

All of them connect through libpq. DuckDB, psycopg2 and ADBC accept a connection string with all parameters. dbt accepts
some, and libpq reads the others from environment variables. A parameter without such a variable is refused, so that no
client connects without, for example, `sslmode=verify-full`.
"""

from __future__ import annotations

from collections.abc import Mapping

# The parameters that reach all clients, and their environment variables. `MSGBUBBLES_` ones are read by dbt's profile.
PARAMETERS = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "passfile": "PGPASSFILE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "application_name": "PGAPPNAME",
    "options": "PGOPTIONS",
    "client_encoding": "PGCLIENTENCODING",
    "keepalives_idle": "MSGBUBBLES_KEEPALIVES_IDLE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslsni": "PGSSLSNI",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslcompression": "PGSSLCOMPRESSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "channel_binding": "PGCHANNELBINDING",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "gssencmode": "PGGSSENCMODE",
    "gssdelegation": "PGGSSDELEGATION",
    "gsslib": "PGGSSLIB",
    "krbsrvname": "PGKRBSRVNAME",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
}


def format_dsn(parameters: Mapping[str, str]) -> str:
    """Format parameters as a connection string of libpq."""
    escaped = {name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in parameters.items()}
    return " ".join(f"{name}='{value}'" for name, value in escaped.items() if value)


def build_environment(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that pass the parameters to dbt."""
    return {PARAMETERS[name]: value for name, value in parameters.items()}
