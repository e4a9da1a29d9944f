"""The bodies of the commands, which `cli.chats` and so on declare and describe. Each is imported when it is run.

They import DuckDB and the job at the top of the file, and some of them dlt, which reads its configuration while it is
imported. So `Workspace.configure_dlt` comes first, and what ends earlier is quick: help, wrong usage, and a second job.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import groups, inspect, privacy, report, serve, sync, watch, webhooks
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(name)
        return import_module(f"{__name__}.{name}")


__all__ = ["groups", "inspect", "privacy", "report", "serve", "sync", "watch", "webhooks"]
