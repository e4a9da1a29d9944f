"""A bucket of an object store that holds a lake's files: its secret for DuckDB, a probe, and what its errors mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.sql import quote_literal

# It is written before each run, always with the same contents, because an object store has no cheaper way to find out
# whether a key may write.
PROBE = ".msgbubbles_probe.csv"
# An object store that does not answer is reported after some seconds, and not after minutes.
PROBE_LIMITS = ("SET http_timeout = 5", "SET http_retries = 1")
UNQUOTED = ("type", "provider", "use_ssl")

# DuckDB's messages quote the path of the file, which is no secret, but may quote what a proxy answered.
REASONS = (
    (
        re.compile("NoSuchBucket|ContainerNotFound"),
        "there is no bucket of that name",
        "create it, or correct bucket_url",
    ),
    (re.compile("ExpiredToken|TokenRefreshRequired|RequestExpired"), "the key has expired", "configure a new one"),
    (
        re.compile(
            "HTTP (?:code )?40[13]|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch"
            "|AuthorizationFailure|AuthenticationFailed|credentials used were wrong"  # Azure's
        ),
        "it refuses the key",
        "correct the key, or give it the rights to list, read, write and delete in that folder",
    ),
    (
        re.compile(
            "HTTP (?:code )?5[0-9]{2}|SlowDown|Could not connect to server|Timeout was reached"
            "|Could not resolve hostname|error for HTTP [A-Z]+ to|Server returned nothing"
            "|Failure when receiving data|Failed sending data"
        ),
        "it does not answer",
        "check the network, endpoint_url and region_name",
    ),
    (
        re.compile("HTTP (?:code )?[34][0-9]{2}"),
        "it refuses the request",
        "check region_name, endpoint_url and s3_url_style",
    ),
)


@dataclass(frozen=True)
class Bucket:
    """A folder in a bucket, as a URL, and the parameters of DuckDB's secret for it."""

    url: str
    secret: Mapping[str, str]

    @property
    def extensions(self) -> list[str]:
        """The extensions of DuckDB that open it."""
        extensions = ["azure"] if self.secret["type"] == "azure" else ["httpfs"]
        return [*extensions, *["aws"] * (extensions == ["httpfs"] and "provider" in self.secret)]

    @property
    def settings(self) -> dict[str, str]:
        """The settings that a connection needs."""
        # Otherwise the extension looks for the certificates of authorities where only Red Hat has them.
        return {"azure_transport_option_type": "curl"} if self.secret["type"] == "azure" else {}

    def add_secret(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let a connection open the bucket."""
        for name, value in self.settings.items():
            # Global, because functions of DuckLake read the bucket in connections of their own.
            connection.execute(f"SET GLOBAL {name} = {quote_literal(value)}")
        parameters = {"scope": self.url, **self.secret}
        listed = [f"{name} {value if name in UNQUOTED else quote_literal(value)}" for name, value in parameters.items()]
        connection.execute(f"CREATE SECRET ({', '.join(listed)})")

    def probe(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Write a small file and read it: attaching a lake does not ask the bucket. Raises `UsageError`."""
        path = quote_literal(f"{self.url.rstrip('/')}/{PROBE}")
        try:
            limits = PROBE_LIMITS if "httpfs" in self.extensions else ()
            for statement in (*limits, f"COPY (SELECT 1 AS probe) TO {path}", f"FROM read_csv({path})"):
                connection.execute(statement).fetchall()
        except duckdb.Error as error:
            raise UsageError(
                self.explain(str(error)) or f"the bucket {self.url} cannot be used ({type(error).__name__})"
            ) from None

    def explain(self, message: str) -> str | None:
        """Return what an error message of DuckDB means and how to fix it; null if it is not about the bucket."""
        for pattern, reason, fix in REASONS:
            if pattern.search(message):
                return f"the bucket {self.url} cannot be used: {reason}; {fix}, and run again"
        return None
