"""A command that is forked is a process like one that is started on its own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.process import FORKS, READ_AT_IMPORT, Process, run_process

pytestmark = pytest.mark.skipif(not FORKS, reason="commands are not forked here")


def run_code(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_process([sys.executable, "-c", code, *arguments], capture_output=True, **options)


def test_fork_has_its_own_arguments_environment_folder_and_limits(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        "import os, resource, sys; print(sys.argv[1:], os.environ['WORD'], 'HOME' in os.environ, os.getcwd(), "
        "resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.umask(0), 'dlt' in sys.modules)"
    )
    run_code("pass")  # the server runs: it does not inherit what follows
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    before = os.umask(0o027)
    try:
        done = run_code(code, "a", env={"WORD": "b"} | python_variables(), cwd=tmp_path)
    finally:
        os.umask(before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert done.stdout == f"['a'] b False {tmp_path} {soft - 1} {0o027} True\n"
    assert done.stderr == ""


def python_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if READ_AT_IMPORT.match(name)}


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
    ],
)
def test_fork_ends_as_the_interpreter_does(code: str, status: int, error: str) -> None:
    done = run_code(code)
    assert (done.returncode, done.stderr.strip().split("\n")[-1]) == (status, error)


def test_fork_runs_exit_functions_and_waits_for_its_threads() -> None:
    code = (
        "import atexit, threading, time\natexit.register(print, 'exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()"
    )
    assert run_code(code).stdout == "thread\nexit\n"


def test_fork_can_be_sent_input_and_signals() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(5)); print(input(), flush=True)"
    command = [sys.executable, "-c", code + "; time.sleep(60)"]
    with Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == "hello\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5
    assert process.max_kilobytes > 0


def test_variables_that_python_reads_when_it_starts_prevent_a_fork() -> None:
    code = "import sys; print('dlt' in sys.modules)"
    assert run_code(code, env={**os.environ, "PYTHONHASHSEED": "1"}).stdout == "False\n"
    assert run_code(code).stdout == "True\n"
