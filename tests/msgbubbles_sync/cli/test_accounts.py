"""How a command is run for all accounts, and which files are theirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from msgbubbles_sync.cli import accounts
from msgbubbles_sync.destinations import destination_of
from msgbubbles_sync.destinations.claims import claim, files_of_accounts
from msgbubbles_sync.workspace import Place, UsageError

PIPELINES = Path(__file__).parents[3] / "pipelines"


@pytest.mark.parametrize(
    ("statuses", "comes_to"),
    [
        ([0, 0], 0), ([0, 3], 3), ([3, 2], 2), ([2, 1, 3], 1), ([1, 130], 130), ([0, -9], 1), ([75, 0], 0),
        ([75, 75], 75), ([75, 1], 1), ([75, 3], 3),
    ],
)  # fmt: skip
def test_what_several_exit_statuses_come_to(statuses: list[int], comes_to: int) -> None:
    assert accounts.overall(statuses) == comes_to


def claimed(place: Place) -> Place:
    place.make_folders()
    claim(place, destination_of(place), sandbox=False, say=print)
    place.database.touch()
    return place


def test_files_of_accounts_go_by_what_is_there(tmp_path: Path) -> None:
    """Whatever is configured for this process: each account may have a job of its own, which knows no other."""
    north, south = (claimed(Place.of(tmp_path / "company.duckdb", account=name)) for name in ("north", "south"))
    claimed(Place.of(tmp_path / "company_west.duckdb"))
    claimed(Place.of(tmp_path / "other.duckdb", account="east"))
    (south.folder.parent / "company_broken").mkdir()
    (south.folder.parent / "company_broken" / "account.json").write_text("{")
    assert files_of_accounts(north) == {"north": north.database, "south": south.database}
    south.database.unlink()
    assert files_of_accounts(north) == {"north": north.database}


def test_a_file_that_is_somebody_elses_is_not_taken_for_an_accounts(tmp_path: Path) -> None:
    claimed(Place.of(tmp_path / "company_north.duckdb"))
    claimed(Place.of(tmp_path / "company.duckdb", account="a_b"))
    for place, whose in (
        (Place.of(tmp_path / "company.duckdb", account="north"), "a MsgBubbles account"),
        (Place.of(tmp_path / "company_a.duckdb", account="b"), "account a_b of company.duckdb"),
    ):
        with pytest.raises(UsageError, match=f"holds the rows of {whose}; choose another --database for account"):
            claimed(place)


COMMAND = """
import json, os, signal, sys, time
sys.path.insert(0, {pipelines!r})
from msgbubbles_sync.cli import accounts
from msgbubbles_sync.destinations.claims import claim, files_of_accounts
name = os.environ.get("MSGBUBBLES_ACCOUNT")
if name is None:
    sys.exit(accounts.run_each({names!r}, at_once={at_once}, quiet=False, as_json={as_json}))
{body}
"""


def command(folder: Path, body: str, *names: str, at_once: int = 4, as_json: bool = False) -> subprocess.Popen[str]:
    script = folder / "command.py"
    script.write_text(
        COMMAND.format(pipelines=str(PIPELINES), names=names, at_once=at_once, as_json=as_json, body=body)
    )
    environment = {name: value for name, value in os.environ.items() if name != "MSGBUBBLES_ACCOUNT"}
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def test_each_line_says_whose_it_is(tmp_path: Path) -> None:
    process = command(tmp_path, 'print("done", end=""); print("oh", file=sys.stderr)', "a", "b")
    output, errors = process.communicate(timeout=60)
    assert (sorted(output.splitlines()), sorted(errors.splitlines())) == (
        ["a | done", "b | done"],
        ["a | oh", "b | oh"],
    )


@pytest.mark.parametrize("at_once", [1, 4])
def test_as_json_each_says_what_it_is_about(tmp_path: Path, at_once: int) -> None:
    body = 'print(json.dumps({"found": name} if name == "a" else [{"found": name}]))'
    output, _ = command(tmp_path, body, "a", "b", at_once=at_once, as_json=True).communicate(timeout=60)
    assert sorted(map(json.loads, output.splitlines()), key=str) == [
        [{"account": "b", "found": "b"}], {"account": "a", "found": "a"}
    ]  # fmt: skip


# The first signal is minded, a second one kills: as the job does it.
STOPS = """
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("stopping", flush=True)
    time.sleep({seconds})
    print("stopped", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_that_run_and_they_are_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    process = command(tmp_path, STOPS.format(seconds=0.5), "a", "b", "c", at_once=2)
    assert process.stdout
    begun = {process.stdout.readline() for _ in range(2)}
    assert begun == {"a | begun\n", "b | begun\n"}
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output.count(" | stopped") == 2
    assert "c | " not in output, "none begins after it"


def test_a_second_signal_ends_them_at_once(tmp_path: Path) -> None:
    process = command(tmp_path, STOPS.format(seconds=60), "a", "b")
    assert process.stdout
    for _ in range(2):
        process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    for _ in range(2):
        assert process.stdout.readline().endswith("stopping\n")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert (process.returncode, time.monotonic() - began < 20) == (130, True)


def test_one_that_begins_when_the_signal_comes_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Begun:
        def send_signal(self, number: int) -> None:
            told.append(number)

        def wait(self) -> int:
            return 130 if told else 0

    @contextmanager
    def started(*_: object) -> Iterator[Begun]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # it has come by then
        yield Begun()

    monkeypatch.setattr(accounts, "_started", started)
    assert accounts.run_each(["a"], at_once=1, quiet=True, as_json=False) == 130
    assert told == [signal.SIGTERM]


def test_one_that_is_killed_is_a_failure_and_stops_no_other(tmp_path: Path) -> None:
    body = 'name == "a" and os.kill(os.getpid(), signal.SIGKILL); time.sleep(0.3); print("done")'
    process = command(tmp_path, body, "a", "b")
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "b | done\n")


def test_who_listens_no_more_holds_nobody_up(tmp_path: Path) -> None:
    process = command(tmp_path, 'print("xxxxxxxxx\\n" * 100_000)\nopen(name, "w").close()', "a", "b")
    with process:
        assert process.stdout
        process.stdout.close()
        try:
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "command.py"}
