"""Sync, inspect and act on a MsgBubbles account."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer.main
from typer.core import TyperGroup

from .dispatch import SUMMARIES
from .main import build_app


class Subcommands(TyperGroup):
    """Imports a subcommand when it is called, and none to list them."""

    def list_commands(self, _: Any) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, _: Any, name: str) -> Any:
        if name not in SUMMARIES:
            return None
        command = typer.main.get_command(import_module(f".{name}", __package__).app)
        command.name = name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names: Any = dict.fromkeys(SUMMARIES)
        self.commands.update(names)  # for "did you mean"
        return super().resolve_command(ctx, args)

    def format_commands(self, _: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


app = build_app(__doc__, cls=Subcommands, add_completion=True, no_args_is_help=True)
