"""What the commands share: how to reach the account, what a stop and an error mean, and the exit statuses."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from msgspec import structs

from msgbubbles_sync.configuration import configuration_folder, read_toml
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.lock import AnotherJobRunsError, JobStalledError
from msgbubbles_sync.settings import ACCOUNT_VARIABLE, Settings, account_names, load_settings
from msgbubbles_sync.workspace import ROOT, Workspace

from .accounts import run_each
from .console import Reporter

if TYPE_CHECKING:
    from msgbubbles.client import Client
    from msgbubbles.source.run import Run
    from msgbubbles.transport import Transport

EXIT_FAILED, EXIT_USAGE, EXIT_INCOMPLETE, EXIT_LOCKED, EXIT_STOPPED = 1, 2, 3, 75, 130

NO_KEY = """No API key. Either

  try it with a made-up account:   python pipelines/{script} --sandbox
  or use your own key:             export SOURCES__MSGBUBBLES__API_KEY=sk_live_...
                                   (or copy dlt_config/secrets.toml.example to secrets.toml and put it there)"""

Database = Annotated[
    Path | None,
    typer.Option(
        "--database", help="The DuckDB file for readers. [default: warehouse.duckdb, or sandbox.duckdb, in the project]"
    ),
]
Account = Annotated[
    str | None,
    typer.Option(
        "--account", envvar=ACCOUNT_VARIABLE, show_envvar=False, metavar="NAME",
        help="Which of the accounts in [accounts.NAME] of the configuration.",
    ),
]  # fmt: skip
Into = Annotated[
    Literal["duckdb", "postgres", "ducklake", "filesystem"],
    typer.Option("--destination", help="Where the tables are."),
]
Sandbox = Annotated[bool, typer.Option("--sandbox", help="Use a made-up account on this machine; no key.")]


def app_of(doc: str | None, **options: Any) -> typer.Typer:
    """A program whose help is its module's docstring."""
    # \b keeps the help from running the lines of a paragraph together.
    text = (doc or "").replace("\n\n", "\n\n\b\n")
    return typer.Typer(
        help=text, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **options
    )


def start(app: typer.Typer) -> None:
    """The whole life of a command's process."""
    # A number that is closed would be given to the next file that is opened, and what is printed would go there.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _Output.of(sys.stdout), _Output.of(sys.stderr)
    sys.meta_path.insert(0, _NoPandas())
    # Arrow's own allocators keep what they have used: some 30 MB here.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    app()


class _Output(io.TextIOWrapper):
    """A standard stream that never fails: what its terminal cannot show is a question mark, and where nobody reads any
    more, nothing is said. The work goes on."""

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
    """DuckDB imports pandas with the first parameter of a query, and pyarrow with the first array, to see whether a
    value is one of its. None is here, and it would cost a run that finds nothing a fifth of its time and 77 MB."""

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not for the job", name=name)


def workspace_of(
    database: Path | None, account: str | None, destination: str = "duckdb", *, sandbox: bool
) -> Workspace:
    """The warehouse that a command is about, or one account's part of it, by which this process is then configured.
    Raises `UsageError`, of it `SeveralAccountsError` where none was named."""
    database = database or ROOT / f"{'sandbox' if sandbox else 'warehouse'}.{destination}"
    if sandbox:
        if account is not None:
            raise UsageError(f"--sandbox is an account by itself: leave out --account, and unset {ACCOUNT_VARIABLE}")
        return Workspace.from_path(database, destination)
    known = account_names()
    if account is None:
        if known:
            raise SeveralAccountsError(known)
        return Workspace.from_path(database, destination)
    if account not in known:
        there = f"there are {', '.join(known)}" if known else "there is none"
        raise UsageError(f"--account {account}: {there}, see [accounts.NAME] in dlt_config/config.toml")
    if not load_settings(account).api_key:
        raise UsageError(
            f"account {account} has no API key: set api_key of [accounts.{account}] in dlt_config/secrets.toml, or "
            f"ACCOUNTS__{account.upper()}__API_KEY"
        )
    workspace = Workspace.from_path(database, destination, account)
    workspace.refuse_unnamed_account()
    return workspace


class SeveralAccountsError(UsageError):
    """A command is about one account, and there are several."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"say of which account: --account {' or '.join(names)}")
        self.names = names


def ended(
    body: Callable[[Workspace], int],
    workspace_of: Callable[[], Workspace],
    reporter: Reporter,
    stopped: str,
    *,
    for_each: bool = False,
) -> NoReturn:
    """Run a command, tell what went wrong in its way, and exit with the status that says so. `stopped` says what a
    second Ctrl-C means. If several accounts are configured and none is named, `for_each` runs it for each of them."""
    os.umask(0o077)  # whatever dlt, dbt and we write is for this user only
    workspace = None
    try:
        try:
            workspace = workspace_of()
        except SeveralAccountsError as several:
            if not for_each:
                raise
            status = run_each(several.names, quiet=reporter.quiet, as_json=reporter.as_json)
        else:
            status = body(workspace)
    except AnotherJobRunsError as error:
        reporter.fail(str(error))
        status = EXIT_FAILED if isinstance(error, JobStalledError) else EXIT_LOCKED
    except KeyboardInterrupt:
        reporter.fail(stopped)
        status = EXIT_STOPPED
    except Exception as error:
        status, message = explained(error, workspace)
        reporter.fail(message)
    sys.stdout.flush()
    raise typer.Exit(status)


def explained(error: Exception, workspace: Workspace | None) -> tuple[int, str]:
    """The exit status for an error, and what to say of it. What the database or dlt say may quote rows, so that goes
    to a file that only the user reads."""
    if isinstance(error, UsageError):
        return EXIT_USAGE, str(error)
    # dlt is imported when a place has been made ready for it.
    from dlt.common.configuration.exceptions import ConfigValueCannotBeCoercedException

    from msgbubbles.errors import ConfigurationError, Interrupted, MsgBubblesError
    from msgbubbles_sync.dbt.runner import TransformError
    from msgbubbles_sync.policy.applied import details_of

    from .hints import causes_of, trouble_of

    if any(isinstance(cause, KeyboardInterrupt) for cause in causes_of(error)):  # dlt makes errors of it
        return EXIT_STOPPED, "stopped at once; what was loaded stays, and the next run goes on from there"
    if isinstance(error, ConfigValueCannotBeCoercedException):
        return EXIT_USAGE, f"{error.field_name} has no value of its type; dlt_config/config.toml shows how it is set"
    if isinstance(error, ConfigurationError):
        return EXIT_USAGE, str(error)
    if isinstance(error, Interrupted):
        return EXIT_STOPPED, str(error)
    if isinstance(error, MsgBubblesError | TransformError) or workspace is None:
        return EXIT_FAILED, str(error)
    trouble = trouble_of(error, workspace) or f"{type(error).__name__}; what was loaded stays"
    with suppress(OSError):  # where the disk is full, or is not ours
        path = write_privately(workspace.folder / "last_error.txt", details_of(error, workspace))
        trouble += f". Details, which may quote your data: {path}"
    return EXIT_FAILED, trouble


@contextmanager
def readable_configuration() -> Iterator[None]:
    """Turns what dlt makes of a broken configuration file into a `UsageError`."""
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


# How long a second signal lets the process end in an orderly way.
SECONDS_TO_END = 1.0


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops after the request in flight; a second one stops at once."""

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    received, sent = socket.socketpair()
    sent.setblocking(False)
    # Python writes a byte there for every signal, also while dlt has handlers of its own, or DuckDB has the thread.
    writes_to = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_signal, args=(received,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(writes_to)
        sent.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_second_signal(received: socket.socket) -> None:
    """End the process soon after the second signal: its threads may wait for an answer or for a disk."""
    count = 0
    with received:
        while numbers := received.recv(16):
            count += sum(number in (signal.SIGINT, signal.SIGTERM) for number in numbers)
            if count > 1:
                time.sleep(SECONDS_TO_END)
                os._exit(EXIT_STOPPED)


def account_of(workspace: Workspace, *, sandbox: bool) -> AbstractContextManager[Settings]:
    """Return the settings, with those that reach the sandbox if it is asked for. Raises `UsageError`."""
    settings = load_settings(workspace.account)
    return _sandbox(workspace, settings) if sandbox else nullcontext(settings)


@contextmanager
def _sandbox(workspace: Workspace, settings: Settings) -> Iterator[Settings]:
    """Serve a made-up account in a process of its own that ends with this one. Yields the settings that reach it."""
    command = [
        sys.executable,
        "-m",
        "msgbubbles_sync.sandbox",
        "--until-stdin-closes",
        "--state",
        str(workspace.folder / "sandbox.sqlite"),
    ]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "pipelines")},
        start_new_session=True,  # Ctrl-C is for the job
    )
    with process:
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise UsageError("the sandbox did not start: what it says is above")
            account = json.loads(line)
            # The budget of a made-up key is nobody else's business.
            source = structs.replace(settings.source, base_url=account["url"], budget_dir=str(workspace.folder))
            yield replace(settings, source=source, api_key=account["key"], placeholder=None)
        finally:
            if process.stdin:
                process.stdin.close()


@dataclass(frozen=True)
class Command:
    """What a command that asks the API begins with."""

    workspace: Workspace
    script: str
    run: Run
    settings: Settings

    def client(self) -> Client:
        from msgbubbles.client import Client

        return Client(transport_of(self.settings, self.run, self.script))


@contextmanager
def begun(workspace: Workspace, script: str, *, sandbox: bool) -> Iterator[Command]:
    """Begin a command; a signal then stops its run."""
    workspace.make_folders()
    workspace.configure_dlt()
    # dlt reads its configuration when it is imported, which therefore has to wait until here.
    with readable_configuration():
        import dlt  # noqa: F401

        from msgbubbles.source.run import Run
    check_version(workspace, build_destination(workspace))
    run = Run()
    with stopped_by_signals(run.stop), account_of(workspace, sandbox=sandbox) as settings:
        yield Command(workspace, script, run, settings)


def transport_of(settings: Settings, run: Run, script: str, **others: Any) -> Transport:
    """Build the transport that the source would use. Raises `UsageError` without a key."""
    from msgbubbles.rate_limit import RateLimiter
    from msgbubbles.transport import Transport

    check_api_key(settings, script)
    source = settings.source
    per_minute = source.requests_per_minute
    rate_limiter = RateLimiter.for_key(settings.api_key, per_minute, source.budget_dir) if per_minute else None
    return Transport(
        source.base_url,
        settings.api_key,
        rate_limiter,
        timeout_seconds=source.timeout_seconds,
        **{"max_attempts": source.max_attempts, **others},
        traffic=run.traffic,
        max_requests=run.max_requests,
        stop=run.stop,
        on_wait=run.on_wait,
        clock=run.clock,
    )


def check_api_key(settings: Settings, script: str) -> None:
    """Raise `UsageError` without an API key, or with the placeholder of an example."""
    if not settings.api_key:
        raise UsageError(NO_KEY.format(script=script))
    if settings.placeholder:
        raise UsageError(settings.placeholder)
