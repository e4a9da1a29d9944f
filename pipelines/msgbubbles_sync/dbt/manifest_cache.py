"""The dbt project as dbt has parsed it, kept in `transforms/target/`; of an installed package, in the user's cache.

Parsing takes dbt longer than building a small account's marts does. What comes of it depends on the project's files,
on dbt, and on the names of target, database, schemas and time zone, and on nothing else of a warehouse: so warehouses
share it.
dbt's own memory of it (`partial_parse`) is for one database file only.
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
# What dbt itself puts there.
MADE_BY_DBT = ("target", "logs", "dbt_packages")
KEY_BYTES = 32


def digest_of(paths: Iterable[Path], *settings: str) -> hashlib._Hash:
    """Stands for files of the project and for settings; of files that differ, it differs."""
    digest = hashlib.sha256("\0".join(settings).encode())
    for path in sorted(paths):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(PROJECT).as_posix()}\0{len(content)}\0".encode() + content)
    return digest


def stored(target: str, database: str, time_zone: str, schema_prefix: str) -> Manifest | None:
    """What was stored for the project as it is now; null where it has to be parsed."""
    from dbt.contracts.graph.manifest import Manifest

    try:
        kept = _path(target, database, schema_prefix).read_bytes()
        if kept[:KEY_BYTES] != _key(target, database, time_zone, schema_prefix):
            return None
        found = Manifest.from_msgpack(kept[KEY_BYTES:])
    except Exception:  # whatever is wrong with the file, parsing mends it
        return None
    found.build_parent_and_child_maps()
    return found


def store(manifest: Manifest, target: str, database: str, time_zone: str, schema_prefix: str) -> None:
    """Keep it for all warehouses. Where it cannot be kept, the next run parses again."""
    path = _path(target, database, schema_prefix)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, new = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_key(target, database, time_zone, schema_prefix) + manifest.to_msgpack())
        Path(new).replace(path)


def _path(target: str, database: str, schema_prefix: str) -> Path:
    # The name of a database may be anything.
    folder = PROJECT / "target" if IS_CHECKOUT else platformdirs.user_cache_path("msgbubbles") / "dbt"
    return folder / f"{target}-{schema_prefix}{hashlib.sha256(database.encode()).hexdigest()[:16]}.msgpack"


def _key(*names: str) -> bytes:
    files = (path for path in PROJECT.rglob("*") if path.is_file() and _is_source(path))
    made_with = [version(name) for name in ("dbt-core", "dbt-duckdb", "dbt-common", "dbt-adapters")]
    return digest_of(files, platform.python_version(), *made_with, *names).digest()


def _is_source(path: Path) -> bool:
    return path.relative_to(PROJECT).parts[0] not in MADE_BY_DBT
