"""Define a program: its help, its commands, and the options that commands share.

Imports neither dlt nor DuckDB, so that help and wrong usage are quick. `session` runs a command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from msgbubbles.version import VERSION
from msgbubbles_sync.lock import is_any_held
from msgbubbles_sync.workspace import ACCOUNT_VARIABLE, DestinationName

from .console import Reporter, name_as_called
from .output import limit_waiting

if TYPE_CHECKING:
    from msgbubbles_sync.context import Context

# Each option with its default.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "database": (
        Annotated[
            Path | None,
            typer.Option(
                metavar="FILE", show_default=False, readable=False,
                help="The DuckDB file for readers. [default: warehouse.duckdb, or sandbox.duckdb, in the project]",
            ),
        ],
        None,
    ),
    "account": (
        Annotated[
            str | None,
            typer.Option(
                envvar=ACCOUNT_VARIABLE, show_envvar=False, metavar="NAME",
                help="One of the accounts in [accounts.NAME] of the configuration.",
            ),
        ],
        None,
    ),
    "destination": (
        Annotated[
            DestinationName,
            typer.Option(metavar="NAME", help="Where the tables are: duckdb, postgres, ducklake or filesystem."),
        ],
        "duckdb",
    ),
    "sandbox": (
        Annotated[bool, typer.Option("--sandbox", help="Use a simulated account on this machine. Needs no API key.")],
        False,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="Print errors only.")], False),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")], False),
}  # fmt: skip
COMMON = ("database", "account", "destination", "sandbox")


@dataclass(frozen=True)
class Session:
    """The context of a command and its output, by its options."""

    context: Context
    reporter: Reporter
    sandbox: bool


@dataclass(frozen=True)
class Options:
    """The shared options of a command, and what the command needs.

    If several accounts are configured and none is named, the command runs `for_each` of them. `uses_dlt`: it writes to
    the folder of the workspace. `needs_warehouse`: it exits with status 2 before the first sync. `needs_version`: it
    exits with status 2 if another release wrote the warehouse. `only_reads`: it goes on without the folder if the user
    may not use it.
    """

    database: Path | None
    account: str | None
    destination: str
    sandbox: bool
    for_each: bool = False
    uses_dlt: bool = True
    needs_warehouse: bool = False
    needs_version: bool = False
    only_reads: bool = False


def build_app(doc: str | None, *, add_completion: bool = False, **options: Any) -> typer.Typer:
    """Build a program whose help is its module's docstring."""
    # \b keeps the lines of an example apart.
    paragraphs = name_as_called(doc or "").split("\n\n")
    text = "\n\n".join(f"\b\n{text}" if text.startswith(" ") else text for text in paragraphs)
    app = typer.Typer(
        help=text,
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )
    app.callback()(_main)
    return app


def print_version(is_asked: bool) -> None:
    """Print the version and exit, if `--version` was passed."""
    if is_asked:
        typer.echo(f"msgbubbles-sync {VERSION}")
        raise typer.Exit


def parse_time(text: str, *formats: str) -> datetime:
    """Parse a time in one of some formats. Raises `BadParameter` if it has none of them."""
    for form in formats:
        with suppress(ValueError):
            return datetime.strptime(text, form)  # noqa: DTZ007 - each option has a time zone of its own
    example = " or ".join(datetime(2026, 1, 31, 9, 30).strftime(form) for form in formats[:2])  # noqa: DTZ001
    raise typer.BadParameter(f"write it as {example}, not {text!r}.")


Version = Annotated[
    bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
]


def _main(version: Version = False) -> None:
    pass


@dataclass(frozen=True)
class Script:
    """A program with its commands. `stopped` is what a second Ctrl-C prints; by default that of a sync."""

    app: typer.Typer
    stopped: str = ""

    def command(self, *options: str, name: str | None = None, **needs: Any) -> Callable[[Callable[..., int]], None]:
        """Make a command of a function of a `Session`, which `needs` fields of `Options`.

        The command has the parameters of the function as options and arguments, and of `OPTIONS` the `COMMON` ones and
        those named. It exits with the status that the function returns.
        """

        def decorate(body: Callable[..., int]) -> None:
            def run(**values: Any) -> None:
                self._run(body, partial(Options, **needs), **values)

            own = [
                parameter.replace(kind=Parameter.KEYWORD_ONLY)
                for parameter in signature(body, eval_str=True).parameters.values()
            ]
            common = [
                Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                for name, (annotation, default) in OPTIONS.items()
                if name in (*COMMON, *options)
            ]
            run.__name__, run.__doc__, run.__annotations__ = body.__name__, body.__doc__, {}
            run.__signature__ = Signature([*own[1:], *common])  # type: ignore[attr-defined]
            self.app.command(name)(run)

        return decorate

    def _run(self, body: Callable[..., int], build_options: Callable[..., Options], **values: Any) -> NoReturn:
        from .session import run_command  # it imports DuckDB

        limit_waiting(is_any_held)  # others wait for the lock

        shared = {name: values.pop(name, default) for name, (_, default) in OPTIONS.items()}
        reporter = Reporter(quiet=shared.pop("quiet"), as_json=shared.pop("as_json"))
        os.umask(0o077)  # files of dlt, of dbt and of ours are for this user only
        status = run_command(self, lambda session: body(session, **values), reporter, build_options(**shared))
        sys.stdout.flush()
        raise typer.Exit(status)
