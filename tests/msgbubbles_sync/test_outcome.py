"""A failure of this machine is explained by its cause, and no message proposes to delete files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from dlt.common.exceptions import PipelineException
from dlt.load.exceptions import LoadClientJobFailed

from helpers.context import build_context
from helpers.full_disk import full_disk
from msgbubbles.environment import check_certificates, check_proxies
from msgbubbles.errors import AuthenticationError, ConfigurationError, Interrupted, LimitReached
from msgbubbles_sync.errors import TransformError, UsageError
from msgbubbles_sync.lock import AnotherJobRunsError, JobStalledError
from msgbubbles_sync.outcome import explain_end, find_cause
from msgbubbles_sync.workspace import Workspace

HOLDER = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"


def exceed_duckdb_memory(_workspace: Workspace) -> None:
    with duckdb.connect(config={"memory_limit": "1MB"}) as connection:
        connection.execute("CREATE TABLE t AS SELECT i, md5(i::VARCHAR) AS text FROM range(1000000) t(i)")


def hold_in_another_process(workspace: Workspace) -> None:
    workspace.make_folders()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace.work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        duckdb.connect(str(workspace.work))


def damage(workspace: Workspace) -> None:
    workspace.make_folders()
    workspace.work.write_bytes(b"no database" * 5000)
    duckdb.connect(str(workspace.work))


def raise_in_dlt(error: BaseException) -> Callable[[Workspace], None]:
    def fail(_workspace: Workspace) -> None:
        # dlt wraps it in an error that does not name the cause.
        raise PipelineException("msgbubbles", "load failed") from error

    return fail


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        (exceed_duckdb_memory, "out of memory"),
        (raise_in_dlt(MemoryError()), "out of memory"),
        (raise_in_dlt(RuntimeError("can't start new thread")), "out of memory"),
        (raise_in_dlt(OSError(errno.ENOMEM, "Cannot allocate memory", "/a/file")), "out of memory"),
        (raise_in_dlt(ImportError("libarrow.so: failed to map segment from shared object")), "out of memory"),
        pytest.param(hold_in_another_process, "is open in process", marks=pytest.mark.slow),
        (damage, "the next run restores one from the other"),
        (raise_in_dlt(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file")), "no space left for /a/file"),
        (raise_in_dlt(duckdb.IOException("No space left on device")), "no space left for /"),
        (raise_in_dlt(OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/file")), "/a/file: Too many open files"),
        (raise_in_dlt(IsADirectoryError(errno.EISDIR, "Is", "/job.new", None, "/job.json")), "/job.json is a folder"),
        (raise_in_dlt(NotADirectoryError(errno.ENOTDIR, "Not", "/spool/1.jsonl")), "/spool/1.jsonl is in a file"),
        (raise_in_dlt(FileExistsError(errno.EEXIST, "File exists", "/webhooks")), "/webhooks is a file"),
        (
            raise_in_dlt(PermissionError(errno.EACCES, "Permission denied", "/etc/key")),
            "/etc/key cannot be read or written",
        ),
        (
            raise_in_dlt(ValueError('relation "msgbubbles.chats" does not exist')),
            'relation "msgbubbles.chats" does not',
        ),
        (raise_in_dlt(ValueError('column "text" of relation "messages" does not exist')), 'column "text" of relation'),
        (raise_in_dlt(ValueError("Table with name chats does not exist!")), "Table with name chats does not exist"),
        (raise_in_dlt(ValueError("of a row")), "a load did not finish (ValueError): run again"),
        (raise_in_dlt(LoadClientJobFailed("1", "2", "of a row", ValueError())), "LoadClientJobFailed"),
    ],
)
def test_cause_is_explained_without_proposing_to_remove_files(
    tmp_path: Path, fail: Callable[[Workspace], None], says: str
) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    with pytest.raises(Exception) as raising:  # noqa: PT011 - of any type
        fail(workspace)
    message = find_cause(raising.value, build_context(workspace)) or ""
    assert says in message
    assert "remove" not in message
    assert "of a row" not in message


def test_full_disk_is_explained_while_no_folder_for_temporary_files_has_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    context = build_context(Workspace.from_path(tmp_path / "company.duckdb"))
    with full_disk():
        message = find_cause(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), context) or ""
    assert message.startswith("no space left for /")


@pytest.mark.parametrize("error", [UnicodeEncodeError("ascii", "·", 0, 1, "no"), ValueError("of a row"), KeyError("x")])
def test_unknown_cause_is_not_blamed_on_files(tmp_path: Path, error: Exception) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    context = build_context(workspace)
    assert find_cause(error, context) is None
    outcome = explain_end(error, context)
    assert outcome.exit_status == 1
    assert outcome.message.startswith(f"{type(error).__name__}; loaded rows stay")


def test_interrupted_load_counts_as_stopped(tmp_path: Path) -> None:
    error = PipelineException("msgbubbles", "load failed")
    error.__cause__ = KeyboardInterrupt()
    outcome = explain_end(error, build_context(Workspace.from_path(tmp_path / "company.duckdb")))
    assert outcome.exit_status == 130
    assert "stopped immediately" in outcome.message


@pytest.mark.parametrize(
    ("ended_by", "status"),
    [
        (None, 0),
        (LimitReached("requests"), 0),
        (UsageError("--database"), 2),
        (ConfigurationError("start_date"), 2),
        (AnotherJobRunsError("process 1"), 75),
        (JobStalledError("process 1"), 1),
        (Interrupted("stopped"), 130),
        (KeyboardInterrupt(), 130),
        (AuthenticationError("401"), 1),
        (TransformError("model"), 1),
        (MemoryError(), 1),
    ],
)
def test_each_end_of_a_command_has_its_exit_status(tmp_path: Path, ended_by: BaseException | None, status: int) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    context = build_context(workspace)
    assert explain_end(ended_by, context).exit_status == status
    assert explain_end(ended_by, context, is_incomplete=True).exit_status == (status or 3)


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
def test_unusable_variable_is_named_without_its_password(
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
