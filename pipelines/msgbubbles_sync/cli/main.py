"""The life of a command: its process, its workspace, and how it ends."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, NoReturn

import typer

from msgbubbles_sync.configuration import configuration_folder, read_toml
from msgbubbles_sync.context import Context
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.outcome import explain_end
from msgbubbles_sync.settings import load_settings

from .accounts import run_each
from .console import Reporter, name_as_called
from .options import SeveralAccountsError, choose_workspace

# How many new objects start a garbage collection. Python's 700 make it a fifth of what a quiet run costs; a first load
# of 200,000 messages peaks 30 MB higher than with those, and 280 MB higher without any collection.
GC_THRESHOLD = 100_000


@dataclass(frozen=True)
class Session:
    """What a command works with, by its options."""

    script: str
    context: Context
    reporter: Reporter
    sandbox: bool


@dataclass(frozen=True)
class Script:
    """One of the scripts, by its file's name. `stopped` says what a second Ctrl-C means."""

    name: str
    stopped: str

    def run(
        self,
        body: Callable[[Session], int],
        reporter: Reporter,
        database: Path | None,
        account: str | None,
        destination: str = "duckdb",
        *,
        sandbox: bool,
        for_each: bool = False,
        uses_dlt: bool = True,
    ) -> NoReturn:
        """Run a command, report what ended it before its time, and exit with the status that says so.

        If several accounts are configured and none is named, `for_each` runs it for each of them.
        """
        os.umask(0o077)  # whatever dlt, dbt and we write is for this user only
        context = None
        try:
            try:
                workspace = choose_workspace(database, account, destination, sandbox=sandbox)
            except SeveralAccountsError as several:
                if not for_each:
                    raise
                status = run_each(several.names, quiet=reporter.quiet, as_json=reporter.as_json)
            else:
                context = Context(workspace, load_settings(workspace.account), reporter)
                if uses_dlt:
                    workspace.make_folders()
                    workspace.configure_dlt()
                status = body(Session(self.name, context, reporter, sandbox))
        except (Exception, KeyboardInterrupt) as error:
            outcome = explain_end(error, context)
            reporter.fail(self.stopped if isinstance(error, KeyboardInterrupt) else outcome.message)
            status = outcome.exit_status
        sys.stdout.flush()
        raise typer.Exit(status)


@contextmanager
def readable_configuration() -> Iterator[None]:
    """Turn what dlt makes of a broken configuration file into a `UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        folder = configuration_folder()
        for name in ("config.toml", "secrets.toml"):
            read_toml(folder / name)  # says which file cannot be read, and why
        # Whatever dlt makes of a value, the cause of it is in there.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ValueError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UsageError(
            f"{folder}: config.toml, secrets.toml or the environment has a value of the wrong type; fix it as "
            "config.toml shows"
        ) from None


def build_app(doc: str | None, **options: Any) -> typer.Typer:
    """Return a program whose help is its module's docstring."""
    # \b keeps the help from running the lines of a paragraph together.
    text = name_as_called(doc or "").replace("\n\n", "\n\n\b\n")
    return typer.Typer(
        help=text, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **options
    )


def start(app: Callable[[], Any]) -> None:
    """Run a program as this process."""
    gc.set_threshold(GC_THRESHOLD, 10, 10)
    # The next file that is opened would get the number of a closed standard stream, and with it what is printed.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _Output.of(sys.stdout), _Output.of(sys.stderr)
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


class _Output(io.TextIOWrapper):
    """A standard stream that never fails: what its terminal cannot show is a question mark, and where nobody reads any
    more, nothing is said. The work goes on.
    """

    @classmethod
    def of(cls, stream: Any) -> _Output:
        if stream is None:
            return cls(Path(os.devnull).open("wb"), encoding="utf-8")
        return cls(stream.detach(), stream.encoding, "replace", line_buffering=stream.line_buffering)

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


class _NoPandas(MetaPathFinder):
    """Hide pandas from the job. DuckDB imports it with the first parameter of a query, and pyarrow with the first
    array, to see whether a value is one of its: that costs a run that finds nothing a sixth of its CPU time, and
    38 MB.
    """

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not for the job", name=name)
