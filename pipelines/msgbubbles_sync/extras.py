"""The extras of the package: which one installs what an import lacks."""

from __future__ import annotations

WEBHOOKS = ("prometheus_client", "tomlkit")
GROUPS = ("yaml",)
SYNC = ("dbt", "duckdb", "filelock", "rich", "starlette", "typer", "uvicorn")


def missing_extra(error: ImportError) -> str | None:
    """Say how to install the module that could not be imported; null for a module of no extra."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in (("sync", SYNC), ("groups", GROUPS), ("webhooks", WEBHOOKS)):
        if module in modules:
            return f"{module} is not installed: pip install 'msgbubbles-sync[{extra}]'"
    return None
