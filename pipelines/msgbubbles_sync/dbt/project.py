"""Find the files of the dbt project, detect by a digest whether they have changed, and keep a copy that worked."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from msgbubbles.version import VERSION
from msgbubbles_sync.files import remove, write_privately
from msgbubbles_sync.service_levels import list_schedules
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.workspace import Workspace

# In a checkout this is a link to the folder of that name at the top.
PROJECT = (Path(__file__).parents[1] / "transforms").resolve()
# The files that decide how the marts are built.
BUILD_FILES = ("*.yml", "models/**/*.yml", "models/**/*.sql", "models/**/*.py", "macros/**/*.sql")
# Folders that dbt reads, perhaps through a link. It follows no other link to a folder.
READ_BY_DBT = ("models", "macros", "tests", "seeds", "snapshots", "analyses", "functions")
# Folders that dbt creates.
MADE_BY_DBT = ("target", "logs", "dbt_packages")
# A copy of the project as it was when all marts were built, for when none can be built from a changed one. A file in it
# has the release that built them, and the digest of the build.
LAST_PROJECT, BUILT_BY = "last_project", "built_by"


class Names(NamedTuple):
    """The names on which the parsed project depends: dbt's target, the database and its schemas."""

    target: str
    database: str
    schema_prefix: str
    own_schemas: str = ""  # empty for the usual names


def compute_digest(paths: Iterable[Path], folder: Path, *settings: str) -> hashlib._Hash:
    """Compute a digest of files of the project in a folder, and of settings. Unreadable files count as empty."""
    digest = hashlib.sha256("\0".join(settings).encode())
    for path in sorted(paths):
        content = b""
        with suppress(OSError):
            content = path.read_bytes()
        digest.update(f"\0{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest


def build_variables(settings: Settings) -> dict[str, object]:
    """Build dbt's variables from the settings. If one of them changes, the marts are built from scratch."""
    transforms = settings.transforms
    schedules = list_schedules(transforms.business_hours, transforms.time_zone)
    return {
        "time_zone": transforms.time_zone,
        "lookback_seconds": settings.source.lookback_seconds,
        "close_after_days": transforms.close_after_days,
        "session_gap_hours": transforms.session_gap_hours,
        "business_hours": [schedule.to_variable() for schedule in schedules],
        "sla_targets": [target.to_variable() for target in transforms.sla.targets],
    }


def list_models() -> list[str]:
    """Return the names of the project's models, also of those that dbt cannot read."""
    return sorted({path.stem for path in PROJECT.glob("models/**/*.sql")})


def compute_build_digest(settings: Settings) -> str:
    """Return a digest of what decides how the marts are built: the models, and settings."""
    paths = (path for pattern in BUILD_FILES for path in PROJECT.glob(pattern))
    return compute_digest(paths, PROJECT, json.dumps(build_variables(settings))).hexdigest()


def compute_key(*names: str, folder: Path | None = None) -> bytes:
    """Return a digest of the project's files, of the versions of Python and dbt, and of `names`.

    `folder` has a copy of the project.
    """
    folder = folder or PROJECT
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in MADE_BY_DBT
    )
    return compute_digest(files, folder, platform.python_version(), *_find_versions(), *names).digest()


def copy_project(copy: Path, left_out: Collection[Path] = ()) -> None:
    """Copy the files of the project that dbt can read to a new folder, without these."""

    def is_needed(path: Path) -> bool:
        if path.name in ("target", "logs") or path in left_out or not os.access(path, os.R_OK):
            return False
        is_folder = path.is_dir() and (not path.is_symlink() or path in [PROJECT / name for name in READ_BY_DBT])
        return is_folder or path.is_file()

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if not is_needed(Path(folder, name))]

    shutil.copytree(PROJECT, copy, ignore=ignore)


def store_last_project(workspace: Workspace, digest: str) -> None:
    """Copy the project, from which all marts were built, unless the copy has this digest."""
    copy, content = workspace.dbt_folder / LAST_PROJECT, f"{VERSION} {digest}"
    with suppress(OSError):  # a full or read-only disk, which the run reports as well
        if not (copy / BUILT_BY).is_file() or (copy / BUILT_BY).read_text(errors="replace") != content:
            remove(copy)
            copy_project(copy)
            write_privately(copy / BUILT_BY, content)


def find_last_project(workspace: Workspace, digest: str = "") -> Path | None:
    """Return the project from which this release last built all marts; null without one, or if it has this digest."""
    copy = workspace.dbt_folder / LAST_PROJECT
    with suppress(OSError):
        release, _, built = (copy / BUILT_BY).read_text(errors="replace").partition(" ")
        return copy if release == VERSION and built != digest else None
    return None


@cache
def _find_versions() -> list[str]:
    return [version(name) for name in ("dbt-core", "dbt-duckdb", "dbt-common", "dbt-adapters")]
