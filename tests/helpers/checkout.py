"""A copy of the project, to change it or to run it as a user does."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("pipelines", "transforms", "notebooks", "examples", "dlt_config", "docs", "tests")


def copy_checkout(folder: Path) -> Path:
    """Copy the project to a new folder, as `git clone` does. Returns the folder."""
    ignored = shutil.ignore_patterns("secrets.toml", "logs", "__marimo__")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for path in ROOT.glob("*"):
        if path.is_file() and path.suffix in (".md", ".toml", ".lock", ""):
            shutil.copy2(path, folder)
    return folder
