"""Keep a copy of the dbt project as it was when all marts were built, for when none can be built from a changed one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from msgbubbles.version import VERSION
from msgbubbles_sync.files import remove, write_privately
from msgbubbles_sync.workspace import Workspace

from .project import copy_project

# The copy, and a file in it: the release that built the marts, and the digest of the build.
FOLDER, BUILT_BY = "last_project", "built_by"


def store_last_project(workspace: Workspace, digest: str) -> None:
    """Copy the project, from which all marts were built, unless the copy has this digest."""
    copy, content = workspace.dbt_folder / FOLDER, f"{VERSION} {digest}"
    with suppress(OSError):  # a full or read-only disk, which the run reports as well
        if not (copy / BUILT_BY).is_file() or (copy / BUILT_BY).read_text(errors="replace") != content:
            remove(copy)
            copy_project(copy)
            write_privately(copy / BUILT_BY, content)


def find_last_project(workspace: Workspace, digest: str = "") -> Path | None:
    """Return the project from which this release last built all marts; null without one, or if it has this digest."""
    copy = workspace.dbt_folder / FOLDER
    with suppress(OSError):
        release, _, built = (copy / BUILT_BY).read_text(errors="replace").partition(" ")
        return copy if release == VERSION and built != digest else None
    return None
