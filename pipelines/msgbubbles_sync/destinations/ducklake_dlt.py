"""Build dlt's credentials for a lake from the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dlt
from dlt.common.configuration import resolve_configuration
from dlt.common.configuration.exceptions import ConfigurationException
from dlt.common.configuration.specs import (
    AwsCredentials,
    AzureServicePrincipalCredentialsWithoutDefaults,
    ConnectionStringCredentials,
    CredentialsWithDefault,
)
from dlt.common.exceptions import MissingDependencyException
from dlt.common.storages.configuration import FilesystemConfiguration
from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import SyncSettings

from .bucket import Bucket
from .ducklake import NO_LAKE
from .libpq import fill_credentials, format_dsn, read_parameters

SECTION = "destination.ducklake.credentials"
NO_KEY = """it has no usable credentials for the bucket, under [destination.ducklake.credentials.storage.credentials]
(aws_access_key_id and aws_secret_access_key for s3:// and gs://, azure_storage_account_name and
azure_storage_account_key for az://), and none that are found without; for those, and for az://, install more packages:
pip install "dlt[s3]" duckdb-extension-aws, or "dlt[az]" duckdb-extension-azure"""
# Google's interface for clients of S3, which takes HMAC keys.
GOOGLE = "https://storage.googleapis.com"


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


@dataclass(frozen=True)
class Lake:
    """The address of a lake. `bucket` is null if its files are in a folder."""

    credentials: DuckLakeCredentials
    bucket: Bucket | None

    @property
    def name(self) -> str:
        """The schema of the catalog."""
        return str(self.credentials.ducklake_name)

    @property
    def url(self) -> str:
        """The folder or bucket of the files."""
        return str(self.credentials.storage.bucket_url)

    @property
    def parameters(self) -> Mapping[str, str]:
        """The address of the catalog, as parameters of libpq."""
        return self.credentials.catalog.query or {}

    def build_dlt_destination(self, config: Mapping[str, str]) -> Any:
        """Build the destination for dlt, with the configuration of DuckDB."""
        self.credentials.global_config = dict(config)
        return dlt.destinations.ducklake(self.credentials)


def read_lake(settings: SyncSettings) -> Lake:
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
    catalog = CatalogCredentials()
    catalog.drivername = "postgres"
    fill_credentials(catalog, parameters)
    storage = _read_storage(folder) if "://" in folder else folder
    credentials = DuckLakeCredentials(str(name), catalog=catalog, storage=storage)
    return Lake(credentials, _read_bucket(credentials.storage))


def _read_storage(url: str) -> FilesystemConfiguration | str:
    """Return dlt's configuration of a bucket, or the path of a `file://` URL. Raises `UsageError`."""
    scheme = url.partition("://")[0]
    if scheme == "file":
        return url
    if scheme not in ("s3", "gs", "az", "abfss"):
        raise UsageError(NO_LAKE.format(why=f"bucket_url may be a folder, or begin with s3, gs or az, not {scheme}"))
    given = {"bucket_url": url.replace("gs://", "s3://")}
    try:
        storage = resolve_configuration(
            FilesystemConfiguration(), sections=(*SECTION.split("."), "storage"), explicit_value=given
        )
    except (ConfigurationException, MissingDependencyException):  # its message lists where it looked
        raise UsageError(NO_LAKE.format(why=NO_KEY)) from None
    if isinstance(storage.credentials, AwsCredentials):
        aws = storage.credentials
        aws.region_name = aws.region_name or "us-east-1"
        aws.endpoint_url = aws.endpoint_url or (GOOGLE if scheme == "gs" else None)
    return storage


def _read_bucket(storage: FilesystemConfiguration) -> Bucket | None:
    """Return the bucket of a lake; null if its files are in a folder."""
    if storage.is_local_filesystem:
        return None
    keys: Any = storage.credentials
    if isinstance(keys, AwsCredentials):
        secret = _build_aws_secret(keys)
    elif isinstance(keys, AzureServicePrincipalCredentialsWithoutDefaults):
        secret = {
            "provider": "service_principal",
            "tenant_id": keys.azure_tenant_id,
            "client_id": keys.azure_client_id,
            "client_secret": keys.azure_client_secret,
        }
    elif isinstance(keys, CredentialsWithDefault) and keys.has_default_credentials():
        secret = {"provider": "credential_chain"}
    else:
        account, key = keys.azure_storage_account_name, keys.azure_storage_account_key
        secret = {"connection_string": f"AccountName={account};AccountKey={key}"}
    if not isinstance(keys, AwsCredentials):
        secret = {"type": "azure", "account_name": keys.azure_storage_account_name, **secret}
    return Bucket(storage.bucket_url, secret)


def _build_aws_secret(keys: AwsCredentials) -> dict[str, str]:
    """Return the parameters of the same secret that dlt creates in its own connections."""
    scheme, _, host = (keys.endpoint_url or "https://s3.amazonaws.com").rpartition("://")
    place = {
        "type": "s3",
        "region": keys.region_name or "",
        "endpoint": host,
        "url_style": keys.s3_url_style or "path",
        "use_ssl": str(scheme != "http").lower(),
    }
    if keys.has_default_credentials():
        return {**place, "provider": "credential_chain", "refresh": "auto"}
    token = {"session_token": str(keys.aws_session_token)} if keys.aws_session_token else {}
    return {**place, "key_id": keys.aws_access_key_id, "secret": str(keys.aws_secret_access_key), **token}
