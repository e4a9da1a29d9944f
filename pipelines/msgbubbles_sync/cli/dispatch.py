"""The command `msgbubbles`. Its commands are programs of their own: each is imported when it is called."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module

from msgbubbles_sync.extras import missing_extra

EXIT_USAGE = 2  # as in `outcome`, which needs an extra to import
COMMANDS = ("chats", "groups", "webhooks")
HELP = """Usage: msgbubbles COMMAND ...

Commands:
  chats     Keep a warehouse up to date with a MsgBubbles account, and look at it.
  groups    Plan and apply the groups that a table describes.
  webhooks  Receive events, and register endpoints.

msgbubbles COMMAND --help describes each.
"""


def main() -> None:
    """Run the command that the arguments begin with."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        run(name, arguments, f"msgbubbles {name}")
    elif name == "--help":
        sys.stdout.write(HELP)
    else:
        sys.stderr.write(f"msgbubbles: there is no command {name}\n\n{HELP}")
        sys.exit(EXIT_USAGE)


def run(name: str, arguments: list[str], program: str) -> None:
    """Run a command for the whole life of this process."""
    try:
        from .main import start

        app = import_module(f".{name}", __package__).app
        start(partial(app, arguments, prog_name=program))
    except ModuleNotFoundError as error:
        if (message := missing_extra(error)) is None:
            raise
        sys.stderr.write(f"{program}: {message}\n")
        sys.exit(EXIT_USAGE)
