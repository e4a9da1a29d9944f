"""Define a program: its help, its commands, its process, and how it ends.

Imports neither dlt nor DuckDB, so that help and wrong usage are quick. `session` runs a command.
"""

from __future__ import annotations

import atexit
import codecs
import io
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .console import Reporter, name_as_called

if TYPE_CHECKING:
    from msgbubbles_sync.context import Context

# What an ASCII terminal shows in place of the symbols of progress and of `status`.
ASCII_SYMBOLS = {"█": "#", "▓": "*", "▒": "+", "░": ":", "·": ".", "…": "...", "→": "->"}


@dataclass(frozen=True)
class Session:
    """What a command works with, by its options."""

    script: str
    context: Context
    reporter: Reporter
    sandbox: bool


@dataclass(frozen=True)
class Options:
    """The shared options of a command, and what the command needs.

    If several accounts are configured and none is named, the command runs `for_each` of them. `uses_dlt`: it writes to
    the folder of the workspace. `needs_warehouse`: it exits with status 2 before the first sync.
    """

    database: Path | None
    account: str | None
    destination: str
    sandbox: bool
    for_each: bool
    uses_dlt: bool
    needs_warehouse: bool


@dataclass(frozen=True)
class Script:
    """A script, by the name of its file. `stopped` is what a second Ctrl-C prints; by default that of a sync."""

    name: str
    stopped: str = ""

    def run(self, body: Callable[[Session], int], reporter: Reporter, options: Options) -> NoReturn:
        """Run a command, report what ended it early, and exit with its status."""
        # It imports DuckDB.
        from .session import run_command

        os.umask(0o077)  # files of dlt, of dbt and of ours are for this user only
        status = run_command(self, body, reporter, options)
        sys.stdout.flush()
        raise typer.Exit(status)


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
    if not is_asked:
        return
    from msgbubbles.transport import VERSION  # it imports httpx

    typer.echo(f"msgbubbles-sync {VERSION}")
    raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
]


def _main(version: Version = False) -> None:
    pass


def start(app: Callable[[], Any]) -> None:
    """Run a program as this process."""
    # The next file that is opened would get the number of a closed standard stream, and with it what is printed.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("symbols", _replace_symbols)
    sys.stdout, sys.stderr = _Output.from_stream(sys.stdout), _Output.from_stream(sys.stderr)
    sys.meta_path.insert(0, _NoPandas())
    # Arrow's own allocators do not return freed memory: some 30 MB here.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            _end_process(ended.code)
        raise


def _end_process(status: int) -> None:
    """Exit without taking the interpreter down, if that is safe: with dlt imported, it takes 0.2 seconds.

    Databases, locks and child processes are closed by now. Does nothing in a process without dlt, such as the webhook
    receiver, or with a thread that Python would wait for.
    """
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if "dlt" not in sys.modules or not all(thread.daemon for thread in others):
        return
    atexit._run_exitfuncs()  # of logging, temporary files and the semaphores of dbt
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _replace_symbols(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(ASCII_SYMBOLS.get(character, "?") for character in text), error.end


class _Output(io.TextIOWrapper):
    """A standard stream that never fails.

    A character that its encoding lacks is replaced, and output that nobody reads is dropped: the work continues.
    """

    @classmethod
    def from_stream(cls, stream: Any) -> _Output:
        if stream is None:
            return cls(Path(os.devnull).open("wb"), encoding="utf-8")
        return cls(stream.detach(), stream.encoding, "symbols", line_buffering=stream.line_buffering)

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


class _NoPandas(MetaPathFinder):
    """Hide pandas from the job.

    DuckDB imports it with the first parameter of a query, and pyarrow with the first array, to see whether a value is
    one of its types. In a quiet run that is a sixth of the CPU time, and 38 MB.
    """

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("the job does not import pandas", name=name)
