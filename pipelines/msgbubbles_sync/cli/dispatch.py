"""Run the command `msgbubbles`, or one of its subcommands as a script."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

from msgbubbles_sync.extras import missing_extra

# New objects that start a garbage collection. With Python's 700, collecting takes a fifth of the CPU time of a quiet
# run. A first load of 200,000 messages peaks 30 MB higher than with 700, and 280 MB higher without any collection.
GC_THRESHOLD = 100_000
EXIT_USAGE, EXIT_STOPPED = 2, 130  # as in `outcome`, which needs an extra to import
SUMMARIES = {
    "chats": "Keep a warehouse up to date with a MsgBubbles account.",
    "groups": "Plan and apply the groups that a table declares.",
    "webhooks": "Receive events, and register endpoints.",
}


def main() -> None:
    """Run `msgbubbles`."""
    run("msgbubbles", sys.argv[1:], "msgbubbles")


def run(name: str, arguments: list[str], program: str) -> None:
    """Run the program of a module in this package as this process."""
    gc.set_threshold(GC_THRESHOLD, 10, 10)  # before anything large is imported
    try:
        from .main import start  # imports typer, which is of an extra

        start(lambda: import_module(f".{name}", __package__).app(arguments, prog_name=program))
    except ModuleNotFoundError as error:
        if (message := missing_extra(error)) is None:
            raise
        if arguments in (["--help"], ["-h"]):
            sys.stdout.write("".join(f"{program} {name:<10} {summary}\n" for name, summary in SUMMARIES.items()))
        sys.stderr.write(f"{program}: {message}\n")
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:  # during an import: a command handles it itself
        sys.exit(EXIT_STOPPED)
