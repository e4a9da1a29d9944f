"""Store the parsed dbt project in `transforms/target/`, or in the user's cache if the package is installed.

dbt takes longer to parse the project than to build a small account's marts. The result depends on the project's files,
on dbt, and on the names of target, database, schemas and time zone, but on nothing else in a warehouse, so that
warehouses share it. dbt's own cache (`partial_parse`) works for one database file only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from msgbubbles_sync.workspace import IS_CHECKOUT

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest

# In a checkout this is a link to the folder of that name at the top.
PROJECT = (Path(__file__).parents[1] / "transforms").resolve()
# Folders that dbt creates.
MADE_BY_DBT = ("target", "logs", "dbt_packages")
KEY_BYTES = 32


def compute_digest(paths: Iterable[Path], *settings: str) -> hashlib._Hash:
    """Compute a digest of files of the project and of settings."""
    digest = hashlib.sha256("\0".join(settings).encode())
    for path in sorted(paths):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(PROJECT).as_posix()}\0{len(content)}\0".encode() + content)
    return digest


def load_manifest(target: str, database: str, time_zone: str, schema_prefix: str) -> Manifest | None:
    """Load the manifest of the project as it is now; null if it has to be parsed."""
    from dbt.contracts.graph.manifest import Manifest  # takes seconds

    try:
        content = _path(target, database, schema_prefix).read_bytes()
        if content[:KEY_BYTES] != compute_key(target, database, time_zone, schema_prefix):
            return None
        manifest = Manifest.from_msgpack(content[KEY_BYTES:])
    except Exception:  # whatever is wrong with the file, parsing replaces it
        return None
    manifest.build_parent_and_child_maps()
    return manifest


def store_manifest(manifest: Manifest, target: str, database: str, time_zone: str, schema_prefix: str) -> None:
    """Store a manifest for all warehouses."""
    path = _path(target, database, schema_prefix)
    with suppress(OSError):  # the next run parses again
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, new = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(compute_key(target, database, time_zone, schema_prefix) + manifest.to_msgpack())
        Path(new).replace(path)


def _path(target: str, database: str, schema_prefix: str) -> Path:
    # A database may have any name, so its hash is in the path.
    folder = PROJECT / "target" if IS_CHECKOUT else platformdirs.user_cache_path("msgbubbles") / "dbt"
    return folder / f"{target}-{schema_prefix}{hashlib.sha256(database.encode()).hexdigest()[:16]}.msgpack"


def compute_key(*names: str) -> bytes:
    """Return a digest of the project's files, of the versions of Python and dbt, and of `names`."""
    files = (path for path in PROJECT.rglob("*") if path.is_file() and _is_source(path))
    made_with = [version(name) for name in ("dbt-core", "dbt-duckdb", "dbt-common", "dbt-adapters")]
    return compute_digest(files, platform.python_version(), *made_with, *names).digest()


def _is_source(path: Path) -> bool:
    return path.relative_to(PROJECT).parts[0] not in MADE_BY_DBT
