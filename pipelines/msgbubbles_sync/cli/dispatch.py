"""Run the command `msgbubbles`, or one of its subcommands as a script."""

from __future__ import annotations

import sys
from importlib import import_module

from msgbubbles_sync.extras import missing_extra

EXIT_USAGE = 2  # as in `outcome`, which needs an extra to import
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
