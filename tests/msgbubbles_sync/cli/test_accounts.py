"""How a command is run for all accounts, and which files are theirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.context import build_destination
from helpers.process import Process
from msgbubbles_sync.cli import accounts
from msgbubbles_sync.destinations.claims import claim, find_account_files
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[3] / "pipelines"


@pytest.mark.parametrize(
    ("statuses", "comes_to"),
    [
        ([0, 0], 0), ([0, 3], 3), ([3, 2], 2), ([2, 1, 3], 1), ([1, 130], 130), ([0, -9], 1), ([75, 0], 0),
        ([75, 75], 75), ([75, 1], 1), ([75, 3], 3),
    ],
)  # fmt: skip
def test_most_urgent_exit_status_of_the_accounts_wins(statuses: list[int], comes_to: int) -> None:
    assert accounts.combine_statuses(statuses) == comes_to


def claimed(workspace: Workspace) -> Workspace:
    workspace.make_folders()
    claim(build_destination(workspace), sandbox=False, say=print)
    workspace.database.touch()
    return workspace


def test_account_files_are_found_by_their_claims(tmp_path: Path) -> None:
    """Whatever is configured for this process: each account may have a job of its own, which knows no other."""
    north, south = (
        claimed(Workspace.from_path(tmp_path / "company.duckdb", account=name)) for name in ("north", "south")
    )
    claimed(Workspace.from_path(tmp_path / "company_west.duckdb"))
    claimed(Workspace.from_path(tmp_path / "other.duckdb", account="east"))
    (south.folder.parent / "company_broken").mkdir()
    (south.folder.parent / "company_broken" / "account.json").write_text("{")
    assert find_account_files(north) == {"north": north.database, "south": south.database}
    south.database.unlink()
    assert find_account_files(north) == {"north": north.database}


def test_file_of_another_account_is_refused(tmp_path: Path) -> None:
    claimed(Workspace.from_path(tmp_path / "company_north.duckdb"))
    claimed(Workspace.from_path(tmp_path / "company.duckdb", account="a_b"))
    for workspace, whose in (
        (Workspace.from_path(tmp_path / "company.duckdb", account="north"), "a MsgBubbles account"),
        (Workspace.from_path(tmp_path / "company_a.duckdb", account="b"), "account a_b of company.duckdb"),
    ):
        with pytest.raises(UsageError, match=f"holds the rows of {whose}; choose another --database for account"):
            claimed(workspace)


COMMAND = """
import json, os, signal, sys, time
sys.path.insert(0, {pipelines!r})
from msgbubbles_sync.cli.accounts import run_each
from msgbubbles_sync.cli.dispatch import start
name = os.environ.get("MSGBUBBLES_ACCOUNT")
def main():
    if name is None:
        sys.exit(run_each({names!r}, quiet={quiet}, as_json={as_json}))
{body}
start(main)
"""


def command(folder: Path, body: str, *names: str, quiet: bool = False, as_json: bool = False) -> subprocess.Popen[str]:
    script = folder / "command.py"
    script.write_text(
        COMMAND.format(
            pipelines=str(PIPELINES), names=names, quiet=quiet, as_json=as_json, body=textwrap.indent(body, "    ")
        )
    )
    environment = {name: value for name, value in os.environ.items() if name != "MSGBUBBLES_ACCOUNT"}
    return Process(
        [sys.executable, str(script)],
        our_script=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


SPEAKS = 'print("done"); name == "b" and print("oh", "no", sep="\\n", file=sys.stderr)'


def test_output_of_each_account_follows_its_name(tmp_path: Path) -> None:
    assert command(tmp_path, SPEAKS, "a", "b").communicate(timeout=60) == ("a:\ndone\nb:\ndone\n", "oh\nno\n")


def test_quiet_names_only_the_accounts_that_report_an_error(tmp_path: Path) -> None:
    assert command(tmp_path, SPEAKS, "a", "b", "c", quiet=True).communicate(timeout=60) == (
        "done\n" * 3,
        "b:\noh\nno\n",
    )


def test_output_is_passed_on_line_by_line(tmp_path: Path) -> None:
    body = """
print(json.dumps({"name": name}), flush=True)
began = time.monotonic()
while not os.path.exists("heard"):
    time.monotonic() - began < 20 or sys.exit(1)
    time.sleep(0.1)
"""
    with command(tmp_path, body, "a", as_json=True) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline()) == {"account": "a", "name": "a"}
        (tmp_path / "heard").touch()
    assert process.returncode == 0


@pytest.mark.parametrize("quiet", [False, True])
def test_as_json_each_line_names_its_account(tmp_path: Path, quiet: bool) -> None:
    body = 'print(json.dumps({"found": name} if name == "a" else [{"found": name}]))'
    output, errors = command(tmp_path, body, "a", "b", quiet=quiet, as_json=True).communicate(timeout=60)
    assert list(map(json.loads, output.splitlines())) == [
        {"account": "a", "found": "a"}, [{"account": "b", "found": "b"}]
    ]  # fmt: skip
    assert errors == ("" if quiet else "a:\nb:\n")


# The first signal stops it in order, a second one kills it, as with the job. The signal may arrive while "begun" is
# being printed, and a second print inside of that one fails.
STOPS = """
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.write(1, b"stopping\\n")
    time.sleep({seconds})
    os.write(1, b"stopped\\n")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
for _ in range(600):  # a signal that arrives just before a sleep does not shorten it
    time.sleep(0.1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_passed_on_to_the_running_account(tmp_path: Path, number: signal.Signals) -> None:
    process = command(tmp_path, STOPS.format(seconds=0.5), "a", "b")
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == ["a:\n", "begun\n"]
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == "stopping\nstopped\n", "none begins after it"


def test_second_signal_ends_the_account_at_once(tmp_path: Path) -> None:
    process = command(tmp_path, STOPS.format(seconds=60), "a", "b")
    assert process.stdout
    for _ in range(2):
        process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert (process.returncode, time.monotonic() - began < 20) == (130, True)


def test_signal_during_the_start_of_an_account_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(subprocess.Popen[str]):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(20)"])
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # it has come by then

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(subprocess, "Popen", Started)
    try:
        assert accounts.run_each(["a"], quiet=True, as_json=False) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_killed_account_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    body = 'name == "a" and os.kill(os.getpid(), signal.SIGKILL); print("done")'
    process = command(tmp_path, body, "a", "b")
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "a:\nb:\ndone\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_closed_output_does_not_stop_the_accounts(tmp_path: Path, as_json: bool) -> None:
    body = 'print("xxxxxxxxx\\n" * 100_000)\nopen(name, "w").close()'
    with command(tmp_path, body, "a", "b", as_json=as_json) as process:
        assert process.stdout
        process.stdout.close()
        try:
            assert process.wait(timeout=300) == 0
        finally:
            process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "command.py"}
