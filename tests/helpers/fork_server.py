"""Runs Python commands as forks of one process that has imported dlt, dbt and DuckDB: run by `helpers.process`.

Importing them takes most of the time of a short command. A fork skips that and is otherwise what a command started
again is: a process with its own arguments, environment, folder, standard streams, limits and exit status.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing import resource_tracker, util
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb

from . import faster_libraries

REQUEST_BYTES = 1 << 18
START_LOCK = "start.lock"
# The libraries read them when they are imported. `Workspace.configure_dlt` sets the first before that.
IMPORT_ENVIRONMENT = {"DLT_CONFIG_FOLDER": "dlt_config", "ARROW_DEFAULT_MEMORY_POOL": "system"}
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# What the application imports when it needs it.
LIBRARIES = (
    "adbc_driver_postgresql.dbapi",
    "dbt.adapters.duckdb.impl",
    "dbt.adapters.postgres.impl",
    "dbt.cli.main",
    "dlt.common.libs.pyarrow",
    "dlt.destinations.impl.duckdb.duck",
    "dlt.destinations.impl.ducklake.ducklake",
    "dlt.destinations.impl.filesystem.filesystem",
    "dlt.destinations.impl.postgres.postgres",
    "dlt.sources.helpers.requests",
    "pendulum.locales.en.locale",
    "psycopg2.extras",
    "pyarrow.compute",
    "pyarrow.parquet",
    "rich.console",
    "tomlkit",
    "typer._adapters",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.h11_impl",
    "yaml",
)


def own_folder() -> Path:
    """Return the folder of locks and sockets: another user has another one."""
    folder = Path(tempfile.gettempdir()) / f"msgbubbles-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def preload() -> None:
    """Import what commands use. It opens no connection and leaves no thread of Python's."""
    from msgbubbles_sync.cli.dispatch import HideOptional
    from msgbubbles_sync.workspace import RELIED_ON

    before = dict(os.environ)
    os.environ |= IMPORT_ENVIRONMENT | RELIED_ON
    hide_optional = HideOptional()
    sys.meta_path.insert(0, hide_optional)
    for package in ("msgbubbles", "msgbubbles_sync"):
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                _import(found.name)
    for name in LIBRARIES:
        _import(name)
    sys.meta_path.remove(hide_optional)
    if faster_libraries.BY_DAY:
        faster_libraries.memoize_type_hints()
        faster_libraries.speed_up_dbt()
        faster_libraries.read_files()
        faster_libraries.configure_duckdb()
    importlib.import_module("dlt.common.configuration.plugins").manager()  # reads what each distribution declares
    duckdb.default_connection().close()  # it has threads, which a fork does not inherit
    _run_dbt()
    os.environ.clear()
    os.environ.update(before)


def _run_dbt() -> None:
    """Build the marts once: what dbt compiles and caches in that takes half of a build."""
    from filelock import FileLock

    from msgbubbles_sync.dbt.runner import _Dbt
    from msgbubbles_sync.destinations import build_destination
    from msgbubbles_sync.settings import Settings, SyncSettings
    from msgbubbles_sync.workspace import Workspace

    from .empty_tables import DDL

    # The first server parses the project for all.
    with tempfile.TemporaryDirectory() as folder, FileLock(own_folder() / "parse.lock"):
        workspace = Workspace.from_path(Path(folder, "company.duckdb"))
        workspace.make_folders()
        destination = build_destination(workspace, SyncSettings())
        dbt = _Dbt(destination, Settings(), *destination.read_dbt_target())
        with duckdb.connect(str(workspace.work)) as connection:
            for statement in DDL:
                connection.execute(statement)
        result = dbt.run("run")
        assert not result.failed, result.messages
    # What its locks leave for the end of the process: a fork would do that too, and write to a pipe that it has closed.
    util._run_finalizers()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def _import(name: str) -> None:
    with suppress(ModuleNotFoundError):  # an extra that is not installed
        importlib.import_module(name)


def serve(listener: socket.socket) -> None:
    """Fork a process for each request until the last client closes its end. Reports its id, and how it ended."""
    running: dict[int, tuple[int, socket.socket]] = {}
    clients: dict[int, socket.socket] = {}
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while True:
        for number, _ in poller.poll():
            if number == listener.fileno():
                client, _ = listener.accept()
                clients[client.fileno()] = client
                poller.register(client, select.POLLIN)
                continue
            if number in running:
                pid, report = running.pop(number)
                poller.unregister(number)
                os.close(number)
                with report:
                    _, status, usage = os.wait4(pid, 0)
                    seconds = usage.ru_utime + usage.ru_stime
                    with suppress(OSError):  # nobody waits for it any more
                        report.send(json.dumps([status, seconds, usage.ru_maxrss]).encode())
                continue
            data, descriptors, _, _ = socket.recv_fds(clients[number], REQUEST_BYTES, 4)
            if not data:
                poller.unregister(number)
                clients.pop(number).close()
                if not clients and _close(listener):
                    return
                continue
            report = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                inherited = [listener, report, *clients.values(), *(other for _, other in running.values())]
                _run(json.loads(data), descriptors[1:], inherited, list(running))
            for descriptor in descriptors[1:]:
                os.close(descriptor)
            with suppress(OSError):
                report.send(str(pid).encode())
            exited = os.pidfd_open(pid)
            running[exited] = pid, report
            poller.register(exited, select.POLLIN)


def _close(listener: socket.socket) -> bool:
    """Let the next client start another server, unless it has asked for this one."""
    from filelock import FileLock

    path = Path(listener.getsockname())
    with FileLock(path.with_name(START_LOCK)):
        if select.select([listener], [], [], 0)[0]:
            return False
        path.unlink()
    return True


def _run(request: dict[str, Any], streams: list[int], sockets: list[socket.socket], descriptors: list[int]) -> None:
    """Become the process that was asked for, and end as the interpreter does."""
    status = 1
    try:
        for other in sockets:
            other.close()
        for descriptor in descriptors:
            os.close(descriptor)
        _set_up(request, streams)
        status = _exit_status(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        _finish(status)


class _Fork(subprocess.Popen[Any]):
    """A command that starts itself for each account: as another fork, which is a child of its own."""

    def _execute_child(self, *arguments: Any) -> None:
        command, folder, environment = arguments[0], arguments[5], arguments[6]
        if command[:2] != [sys.executable, sys.argv[0]] or arguments[2] or arguments[4]:
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = arguments[10:16]
        mask = os.umask(0)
        os.umask(mask)
        request = {
            "arguments": command[1:],
            "environment": dict(environment or os.environ),
            "folder": str(folder or Path.cwd()),
            "new_session": arguments[21],
            "umask": mask,
            "limits": {},
        }
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            streams = [os.dup(own if given == -1 else given) for own, given in enumerate((p2cread, c2pwrite, errwrite))]
            _run(request, streams, [], [])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def _set_up(request: dict[str, Any], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 256)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.umask(request["umask"])
    for limit, values in request["limits"].items():
        resource.setrlimit(int(limit), tuple(values))
    environment = request["environment"]
    if any(os.environ.get(name) != environment.get(name) for name in CERTIFICATES):
        sys.modules["msgbubbles.transport"]._build_ssl_context.cache_clear()
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    tempfile.tempdir = None
    subprocess.Popen = _Fork  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = _writer(1, "strict", line_buffering=os.isatty(1))
    sys.stderr = _writer(2, "backslashreplace", line_buffering=True)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)


def _writer(number: int, errors: str, *, line_buffering: bool) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=line_buffering)


def _exit_status(arguments: list[str]) -> int:
    """Run `-c CODE ...` or `SCRIPT ...`. Returns the exit status."""
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path[0] = ""
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)  # noqa: S102
        else:
            sys.argv = arguments
            sys.path[0] = str(Path(arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _finish(status: int) -> None:
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = status or 120
    os._exit(status)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client decides when this ends
    sys.path[0] = sys.argv[2]
    preload()
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)


if __name__ == "__main__":
    main()
