"""The process of a command: its output, and how it ends."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from helpers.process import run_process
from msgbubbles.settings import SourceSettings
from msgbubbles.source.run import Run
from msgbubbles_sync.cli import chats, groups, webhooks
from msgbubbles_sync.cli.console import Reporter, _Countdown, _Estimate
from msgbubbles_sync.cli.dispatch import SUMMARIES, HideOptional

pytestmark = pytest.mark.slow
PIPELINES = Path(__file__).parents[3] / "pipelines"
CHATS = (sys.executable, str(PIPELINES / "chats.py"))
MSGBUBBLES = (sys.executable, "-c", "from msgbubbles_sync.cli.dispatch import main; main()")


def run_command(
    *command: str, folder: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder, env={**os.environ, "PYTHONPATH": str(PIPELINES), **(environment or {})},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def run_fork(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of which it does not matter what it imports."""
    return run_process(list(command), timeout=60, capture_output=True, **options)


START = "import sys\nfrom msgbubbles_sync.cli.dispatch import start\ndef app():\n{body}\nstart(app)"


def run_program(body: str) -> subprocess.CompletedProcess[str]:
    """Run a program that `start` makes of the lines of `body`."""
    return subprocess.run(
        [sys.executable, "-c", START.format(body=textwrap.indent(body, "    "))],
        env={**os.environ, "PYTHONPATH": str(PIPELINES)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


WRITES = """
from msgbubbles_sync.cli import output
output.PATIENCE_SECONDS = 0.1
{limit}
def write():
    for number in range(1000):
        sys.stdout.write(f"{{number}} {{'x' * 100}}\\n")
        sys.stdout.flush()
write()
sys.stderr.write("written\\n")
sys.stdin.readline()
sys.stdout.write(f"1000 {{'x' * 100}}\\n")
"""
ENDS = """
import atexit, os, threading, time, types
class Global:
    def __del__(self, write=os.write):
        write(1, b"interpreter taken down")
sys.modules["__main__"].kept_alive = Global()
atexit.register(print, "exit function")
{body}
sys.stdout.write("no newline")
sys.exit(3)
"""
HAS_DUCKDB = 'sys.modules["duckdb"] = types.ModuleType("duckdb")'


@pytest.mark.parametrize(
    ("body", "is_taken_down"),
    [
        (HAS_DUCKDB, False),
        ("", True),
        (HAS_DUCKDB + '\nthreading.Thread(target=lambda: (time.sleep(0.5), print("thread done"))).start()', True),
    ],
)
def test_process_with_duckdb_exits_without_interpreter_teardown(body: str, is_taken_down: bool) -> None:
    ended = run_program(ENDS.format(body=body))
    assert ended.returncode == 3, ended
    assert ("interpreter taken down" in ended.stdout) is is_taken_down
    assert "exit function" in ended.stdout
    assert "no newline" in ended.stdout
    assert ("thread done" in ended.stdout) is ("Thread" in body)
    assert ended.stderr == ""


@pytest.mark.parametrize("command", [CHATS, MSGBUBBLES])
def test_version_is_shown(command: tuple[str, ...]) -> None:
    shown = run_command(*command, "--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "msgbubbles-sync 0.1.0\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["status", "-h"], ["statsu"]])
def test_quick_commands_import_no_database(arguments: list[str]) -> None:
    modules = "import sys; print(sorted({'dlt', 'dbt', 'duckdb', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    program = f"import atexit\natexit.register(lambda: exec({modules!r}))\n"
    run = "from msgbubbles_sync.cli.dispatch import run\nrun('chats', sys.argv[1:], 'chats.py')"
    shown = run_command(sys.executable, "-c", f"{program}import sys\n{run}", *arguments)
    assert shown.stderr.splitlines()[-1] == "[]"


def test_interrupt_while_modules_are_imported_ends_without_a_traceback() -> None:
    interrupt = "from msgbubbles_sync.cli import dispatch\ndef stop(*_):\n    raise KeyboardInterrupt\n"
    program = f"{interrupt}dispatch.import_module = stop\ndispatch.run('chats', ['status'], 'chats.py')"
    stopped = run_command(sys.executable, "-c", program)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", "")


def test_older_python_is_refused_with_the_one_to_use() -> None:
    program = "import sys; sys.version_info = (3, 10)\nfrom msgbubbles_sync.cli.dispatch import run\n"
    refused = run_command(sys.executable, "-c", f"{program}run('chats', [], 'chats.py')")
    assert refused.returncode == 2
    assert refused.stderr == "chats.py needs Python 3.11 or later: use .venv/bin/python, which `make demo` sets up\n"


def test_sync_imports_dlt_dbt_and_pyarrow_only_when_needed() -> None:
    imports = "import msgbubbles_sync.cli.commands.watch\nprint({'dlt', 'dbt', 'pyarrow'} & set(sys.modules))"
    assert run_program(imports).stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("chats", "statsu"), "No such command 'statsu'. Did you mean 'status'?"),
        (("chtas",), "No such command 'chtas'. Did you mean 'chats'?"),
        (("chats", "status", "--jsn"), "No such option: --jsn (Possible options: --json"),
        (("chats", "--quite"), "No such option: --quite (Possible options: --quiet"),
    ],
)
def test_misspelt_word_is_corrected(arguments: tuple[str, ...], suggestion: str) -> None:
    refused = run_fork(*MSGBUBBLES, *arguments)
    assert refused.returncode == 2
    assert suggestion in refused.stderr


def test_shell_completes_commands() -> None:
    words = {"_MSGBUBBLES_COMPLETE": "complete_bash", "COMP_WORDS": "msgbubbles chats st", "COMP_CWORD": "2"}
    assert run_command(*MSGBUBBLES, environment=words).stdout.split() == ["status"]


def test_summaries_fit_80_columns_and_metavars_are_words() -> None:
    for app in (chats.app, chats.privacy, groups.app, webhooks.app):
        program: Any = get_command(app)
        pages = [program, *program.commands.values()]
        for page in pages:
            help_text = page.get_help(page.make_context("chats.py", [], resilient_parsing=True))
            assert not re.search(r"<(path|int|float|text|%Y)|--\S+ <|[a-z]\.\.\.$", help_text, re.M), help_text
    assert max(len(f"  webhooks  {summary}") for summary in SUMMARIES.values()) <= 80


@pytest.mark.parametrize("action", ["apply", "lookup"])
def test_privacy_commands_have_help_pages_of_their_own(action: str) -> None:
    page = run_fork(*CHATS, "privacy", action, "-h").stdout
    assert page.startswith(f"Usage: chats.py privacy {action} [OPTIONS]")
    assert "--json" in page


@pytest.mark.parametrize(
    ("day", "says"),
    [
        ("2999-01-01", "Invalid value for '--since': 2999-01-01 is in the future. Pass today or an earlier day."),
        ("yesterday", "Invalid value for '--since': write it as 2026-01-31, not 'yesterday'."),
    ],
)
def test_start_that_is_no_past_day_is_refused(tmp_path: Path, day: str, says: str) -> None:
    refused = run_fork(*CHATS, "--since", day, "--database", "new.duckdb", cwd=tmp_path)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert not list(tmp_path.iterdir())


def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("key,title\nnorth,North team\n")
    refused = run_fork(*CHATS, "--sandbox", "--database", str(table))
    assert (refused.returncode, refused.stderr) == (
        2,
        f"--database: {table} is not a DuckDB file; choose another name, or move it away\n",
    )
    assert table.read_text().startswith("key,title")
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize("length", [210, 300])
def test_name_that_leaves_no_room_for_the_files_of_the_job_is_refused(tmp_path: Path, length: int) -> None:
    refused = run_fork(*CHATS, "--sandbox", "--database", "n" * length + ".duckdb", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("--database: the name may have 215 bytes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [["status", "--json"], ["verify", "--full"], ["erase", "+15550100"], ["privacy", "apply"]]
)
def test_missing_warehouse_is_refused_and_nothing_is_created(tmp_path: Path, command: list[str]) -> None:
    refused = run_fork(*CHATS, *command, "--database", "typo.duckdb", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.endswith(
        "typo.duckdb has no warehouse. Run the sync first, or pass the --database that it uses.\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["status", "-h"], ["--version"]])
def test_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    with subprocess.Popen([*CHATS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("is_limited", [True, False])
def test_reader_that_stops_gets_whole_lines_and_the_number_of_missing_ones(is_limited: bool) -> None:
    limit = "output.limit_waiting()" if is_limited else ""
    with subprocess.Popen(
        [sys.executable, "-c", START.format(body=textwrap.indent(WRITES.format(limit=limit), "    "))],
        env={**os.environ, "PYTHONPATH": str(PIPELINES), "PYTHONUNBUFFERED": "1" if is_limited else ""}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stderr
        output = ""
        if is_limited:
            assert select.select([process.stderr], [], [], 60)[0]
            assert process.stderr.readline().startswith("nobody reads the output")
            assert process.stderr.readline() == "written\n"
            output = os.read(process.stdout.fileno(), 1_000_000).decode()
        rest, errors = process.communicate("go on\n", timeout=60)
    lines = (output + rest).splitlines(keepends=True)
    missing = int(re.findall(r"^(\d*) lines? of output left out|$", errors)[0] or 0)
    assert (len(lines) + missing, missing > 0) == (1001, is_limited)
    assert all(re.fullmatch(r"\d+ x{100}\n", line) for line in lines)


def test_symbols_are_readable_on_an_ascii_terminal() -> None:
    shown = run_program('print("█▓▒░· é")')
    assert shown.stdout == "█▓▒░· é\n"
    environment = {"PYTHONIOENCODING": "ascii"}
    program = "from msgbubbles_sync.cli.dispatch import start; start(lambda: print('█▓▒░· é'))"
    assert run_command(sys.executable, "-c", program, environment=environment).stdout == "#*+:. ?\n"


def test_piped_lines_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().print({}, lambda console: console.print("word " * 100))
    assert capsys.readouterr().out.count("\n") == 1


def test_wait_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    countdown = _Countdown("messages 5", 40, "rate limit")
    assert countdown.__rich__() == "messages 5 · waiting 40 s (rate limit)"
    now = 125.0
    assert countdown.__rich__() == "messages 5 · waiting 15 s (rate limit)"
    now = 150.0
    assert countdown.__rich__() == "messages 5 · waiting 0 s (rate limit)"


def test_backfill_with_a_start_shows_its_share_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("time.time", lambda: 100_000.0)
    estimate, run = _Estimate(), Run(settings=SourceSettings(start_date="1970-01-01T00:00:00.001"))
    run.get_progress("messages").reached_ms = 100_000_000
    assert estimate.describe(run) == ""
    now = 600.0
    run.get_progress("messages").reached_ms = 75_000_000
    assert estimate.describe(run) == " · messages 25%, about 30 minutes left"
    run.settings = SourceSettings()
    assert estimate.describe(run) == "", "the end is not known"


def test_numpy_is_hidden_from_the_job_unless_spark_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyspark", raising=False)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        HideOptional().find_spec("numpy", None)
    monkeypatch.setitem(sys.modules, "pyspark", sys)
    HideOptional().find_spec("numpy", None)
