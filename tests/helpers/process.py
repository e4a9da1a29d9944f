"""Starts commands as processes. A Python script of ours is forked from a process that has imported its libraries."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from helpers import fork_server, forked_python

PIPELINES = Path(__file__).parents[2] / "pipelines"
# Read when Python starts or when a library is imported: a process with others cannot be a fork.
READ_AT_IMPORT = re.compile("PYTHON(?!DONTWRITE)|LD_|LC_|LANG|MALLOC|ARROW_|DLT_CONFIG_FOLDER|DLT_USE_JSON|DLT_DLT_ID")
LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
FORKS = sys.platform == "linux" and not os.environ.get("PLAIN_STARTS")


def inherited_environment() -> dict[str, str]:
    """Return our environment without what would make every start compile dlt and dbt again."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _read_at_import(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that matter when a library is imported. The server imports with `IMPORT_ENVIRONMENT`."""
    own = fork_server.IMPORT_ENVIRONMENT.items()
    return {name: value for name, value in environment.items() - own if READ_AT_IMPORT.match(name)}


class _Server:
    """The process that is forked: one for all that give it the same name. It ends when the last of them closes it."""

    def __init__(self, name: str, pipelines: Path = PIPELINES) -> None:
        environment = inherited_environment()
        self._read_at_import = _read_at_import(environment)
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        path = fork_server.own_folder() / f"{name}.socket"
        with FileLock(path.with_name(fork_server.START_LOCK)):
            if not path.exists():
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                    listener.bind(str(path))
                    listener.listen()
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "tests.helpers.fork_server", str(listener.fileno()), str(pipelines)],
                        cwd=PIPELINES.parent,
                        env=environment,
                        pass_fds=[listener.fileno()],
                        stdin=subprocess.DEVNULL,
                    )
            self._control.connect(str(path))

    def has_same_imports(self, environment: dict[str, str]) -> bool:
        return _read_at_import(environment) == self._read_at_import

    def start(self, request: dict[str, Any], streams: list[int]) -> tuple[int, socket.socket]:
        """Fork a process. Returns its id, and where its end is reported."""
        report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno(), *streams])
        pid = report.recv(100)
        if not pid:
            raise RuntimeError("the fork server has ended")
        return int(pid), report

    def fileno(self) -> int:
        """Return the descriptor to which requests are sent."""
        return self._control.fileno()

    def close(self) -> None:
        self._control.close()
        if self._process:
            self._process.wait()


_servers: list[_Server] = []


def stop_server() -> None:
    """End the process that is forked, if there is one."""
    while _servers:
        _servers.pop().close()


def server() -> _Server:
    if not _servers:
        # The same for all of pytest's workers.
        _servers.append(_Server(os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid4().hex))
    return _servers[0]


@contextmanager
def install_forks(project: Path) -> Iterator[dict[str, Any]]:
    """Give a copy of the project a `.venv` whose `python` forks, where forks are used. Yields options for Popen."""
    if not FORKS:
        (project / ".venv").symlink_to(sys.prefix)
        yield {}
        return
    folder = project / ".venv" / "bin"
    folder.mkdir(parents=True)
    for path in Path(sys.prefix, "bin").iterdir():
        if not path.name.startswith("python"):
            (folder / path.name).symlink_to(path)
    (folder / "python").write_text(f"#!{sys.executable} -IS\n{Path(forked_python.__file__).read_text()}")
    (folder / "python").chmod(0o700)
    with closing(_Server(uuid4().hex, project / "pipelines")) as forks:
        yield {"pass_fds": [forks.fileno()], "env": {"FORK_SERVER": str(forks.fileno())}}


class Process(subprocess.Popen[str]):
    """Popen, as a fork where the arguments, the environment and the other options allow it.

    A script of a test can be a fork too, if it is `our_script`: one that imports nothing but the application.
    `cpu_seconds` and `max_kilobytes` are known of a fork that has ended.
    """

    cpu_seconds = 0.0
    max_kilobytes = 0
    _report: socket.socket | None = None

    def __init__(
        self, arguments: list[str], *, start_anew: bool = False, our_script: bool = False, **options: Any
    ) -> None:
        environment = options.get("env") or dict(os.environ)
        self._is_fork = (
            FORKS
            and not start_anew
            and arguments[0] == sys.executable
            and (our_script or arguments[1] == "-c" or Path(arguments[1]).parent == PIPELINES)
            and not {"preexec_fn", "pass_fds", "process_group"} & options.keys()
            and server().has_same_imports(environment)
        )
        self._request = {
            "arguments": arguments[1:],
            "environment": environment,
            "folder": str(options.get("cwd") or Path.cwd()),
            "new_session": options.get("start_new_session", False),
        }
        super().__init__(arguments, text=True, **options)

    def _execute_child(self, *arguments: Any) -> None:
        if not self._is_fork:
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = arguments[10:16]
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        request = self._request | {"umask": _umask(), "limits": {each: resource.getrlimit(each) for each in LIMITS}}
        self.pid, self._report = server().start(request, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._report is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc, no-any-return]
        if wait_flags == os.WNOHANG and not select.select([self._report], [], [], 0)[0]:
            return 0, 0
        with self._report:
            answer = self._report.recv(1000)
        # As from a process that another has waited for.
        status, self.cpu_seconds, self.max_kilobytes = json.loads(answer) if answer else (signal.SIGKILL, 0, 0)
        return self.pid, status

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._report is None:
            return super()._internal_poll(*arguments, **options)  # type: ignore[misc, no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def _umask() -> int:
    """Return this process's umask, without changing it for other threads."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("Umask:")[2].split()[0], 8)


def run_process(
    arguments: list[str], *, timeout: float = 300, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does with text."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Process(arguments, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments, output, errors)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)
