"""Find the extra of the package that installs a missing module."""

from __future__ import annotations

import sys
from pathlib import Path

# The checkout that this module is in, unless the package is installed.
CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CHECKOUT / "pyproject.toml").is_file()
WEBHOOKS = ("prometheus_client", "tomlkit")
GROUPS = ("yaml",)
USE_VENV = "use .venv/bin/python, which `make demo` sets up"
SYNC = ("dbt", "duckdb", "filelock", "rich", "starlette", "typer", "uvicorn")


def missing_extra(error: ImportError) -> str | None:
    """Return how to install the module that could not be imported; null if it belongs to no extra."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in (("sync", SYNC), ("groups", GROUPS), ("webhooks", WEBHOOKS)):
        if module in modules:
            alternative = f"{USE_VENV}, or " if sys.argv[0].endswith(".py") else ""
            return f"{module} is not installed: {alternative}{format_install_command(extra)}"
    return None


def format_install_command(extra: str) -> str:
    """Return the command that installs an extra, with the folder of the project if it is known."""
    python, folder = (f"{sys.executable} -m ", CHECKOUT) if IS_CHECKOUT else ("", "/path/to/project")
    return f"{python}pip install '{folder}[{extra}]'"
