"""Azurite, an emulator of Azure Blob Storage, on loopback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from .s3 import find_free_port, serving

# The account that every Azurite has, with its well-known key.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"


@contextmanager
def running(folder: Path) -> Iterator[int]:
    """Yield the port of an emulator with its data in a folder. Skips the test where it is not installed."""
    emulator = shutil.which("azurite-blob")
    if emulator is None:
        pytest.skip("azurite-blob is not installed (npm install --global azurite)")
    if importlib.util.find_spec("duckdb_extension_azure") is None:
        pytest.skip("DuckDB's extension is not installed (pip install duckdb-extension-azure==1.5.5)")
    port = find_free_port()
    command = [emulator, "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--blobHost", "127.0.0.1"]
    with serving([*command, "--blobPort", str(port), "--location", str(folder)], port):
        yield port


def create_container(port: int, name: str) -> None:
    """Create a container, in a request that is signed with the account's key."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION}
    signed = "\n".join(["PUT", *11 * [""], *(f"{header}:{value}" for header, value in headers.items())])
    signed += f"\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
    assert connection.getresponse().status == 201
    connection.close()
