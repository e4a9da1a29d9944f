"""The bodies of the commands, each imported when it is run.

They import dlt and all that is built on it at the top of the file. dlt takes seconds to import and reads its
configuration while it is imported, so `Workspace.configure_dlt` comes first; and what ends before that is quick: help,
wrong usage, and a job that finds another one running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import groups, inspect, privacy, serve, sync, webhooks
else:
    import importlib

    from msgbubbles_sync.cli.main import readable_configuration

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(name)
        with readable_configuration():
            return importlib.import_module(f"{__name__}.{name}")


__all__ = ["groups", "inspect", "privacy", "serve", "sync", "webhooks"]
