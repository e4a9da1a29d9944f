"""A failure of this machine is named by its cause; deleting files is proposed for none."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from dlt.common.exceptions import PipelineException
from dlt.load.exceptions import LoadClientJobFailed

from msgbubbles.environment import check_certificates, check_proxies
from msgbubbles.errors import ConfigurationError
from msgbubbles_sync.outcome import explain_end, find_cause
from msgbubbles_sync.workspace import Workspace

PIPELINES = Path(__file__).parents[2] / "pipelines"
HOLDER = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
# As dlt does while it loads, something else takes the signals.
STOPPED_TWICE = """
import signal, threading, time
from msgbubbles_sync.cli.signals import stopped_by_signals
with stopped_by_signals(threading.Event()):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    print(flush=True)
    while True:
        time.sleep(60)
"""


def out_of_duckdbs_memory(_workspace: Workspace) -> None:
    with duckdb.connect(config={"memory_limit": "1MB"}) as connection:
        connection.execute("CREATE TABLE t AS SELECT i, md5(i::VARCHAR) AS text FROM range(1000000) t(i)")


def held_by_another_process(workspace: Workspace) -> None:
    workspace.make_folders()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace.work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        duckdb.connect(str(workspace.work))


def damaged(workspace: Workspace) -> None:
    workspace.make_folders()
    workspace.work.write_bytes(b"no database" * 5000)
    duckdb.connect(str(workspace.work))


def raised(error: BaseException) -> Callable[[Workspace], None]:
    def fail(_workspace: Workspace) -> None:
        # As dlt wraps it, which says nothing of the cause.
        raise PipelineException("msgbubbles", "load failed") from error

    return fail


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        (out_of_duckdbs_memory, "memory ran out"),
        (raised(MemoryError()), "memory ran out"),
        (raised(RuntimeError("can't start new thread")), "memory ran out"),
        (raised(OSError(errno.ENOMEM, "Cannot allocate memory", "/a/file")), "memory ran out"),
        (raised(ImportError("libarrow.so: failed to map segment from shared object")), "memory ran out"),
        (held_by_another_process, "is open in process"),
        (damaged, "a run restores the one from the other"),
        (raised(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file")), "no space is left for /a/file"),
        (raised(OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/file")), "/a/file: Too many open files"),
        (raised(PermissionError(errno.EACCES, "Permission denied", "/etc/key")), "/etc/key cannot be used"),
        (raised(ValueError("of a row")), "a load could not be finished (ValueError): run again"),
        (raised(LoadClientJobFailed("1", "2", "of a row", "")), "LoadClientJobFailed"),
    ],
)
def test_cause_is_named_and_nothing_is_to_be_removed(
    tmp_path: Path, fail: Callable[[Workspace], None], says: str
) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    with pytest.raises(Exception) as raising:  # noqa: PT011 - whatever it is
        fail(workspace)
    said = find_cause(raising.value, workspace) or ""
    assert says in said
    assert "remove" not in said
    assert "of a row" not in said


@pytest.mark.parametrize("error", [UnicodeEncodeError("ascii", "·", 0, 1, "no"), ValueError("of a row"), KeyError("x")])
def test_cause_that_is_not_known_is_not_blamed_on_files(tmp_path: Path, error: Exception) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    assert find_cause(error, workspace) is None
    outcome = explain_end(error, workspace)
    assert outcome.exit_status == 1
    assert outcome.message.startswith(f"{type(error).__name__}; what was loaded stays")


def test_interrupted_load_is_a_stop(tmp_path: Path) -> None:
    error = PipelineException("msgbubbles", "load failed")
    error.__cause__ = KeyboardInterrupt()
    outcome = explain_end(error, Workspace.from_path(tmp_path / "company.duckdb"))
    assert outcome.exit_status == 130
    assert "stopped at once" in outcome.message


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_second_signal_ends_a_process_that_does_not_listen(numbers: tuple[signal.Signals, signal.Signals]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED_TWICE], env={**os.environ, "PYTHONPATH": str(PIPELINES)}, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            for number in numbers:
                assert process.poll() is None
                process.send_signal(number)
                time.sleep(0.2)  # two of a kind at once are one
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("NO_PROXY", "::1,localhost, 10.0.0.0/8,*.example.com,.corp,*", None),
        ("no_proxy", "localhost,[::1]:8080", r"no_proxy: \[::1\]:8080 cannot be read; write .* as ::1$"),
        ("HTTPS_PROXY", "proxy.example.com:3128", None),
        ("https_proxy", "ftp://user:hush@host", "https_proxy is not the address of a proxy"),
        ("ALL_PROXY", "http://user:hush@[::1", "ALL_PROXY is not the address of a proxy"),
        ("ALL_PROXY", "socks5://user:hush@host:1", "ALL_PROXY is a SOCKS proxy"),
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE: /nowhere.pem cannot be read"),
        ("SSL_CERT_FILE", "/", "SSL_CERT_FILE: / cannot be read"),
        ("SSL_CERT_FILE", "/dev/null", "SSL_CERT_FILE: /dev/null cannot be read"),
    ],
)
def test_variable_that_cannot_be_used_is_named_without_a_password(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str | None
) -> None:
    monkeypatch.setenv(name, value)

    def check() -> None:
        check_certificates()
        check_proxies()

    if says is None:
        check()
        return
    with pytest.raises(ConfigurationError, match=says) as raising:
        check()
    assert "hush" not in str(raising.value)
