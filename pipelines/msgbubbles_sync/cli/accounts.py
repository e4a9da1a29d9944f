"""Run a command for several accounts, one process after another.

The accounts share no file and no lock, so an account that fails does not stop the next one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from msgbubbles_sync.outcome import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_LOCKED, EXIT_STOPPED, EXIT_USAGE
from msgbubbles_sync.workspace import ACCOUNT_VARIABLE

from .output import limit_waiting


def run_each(names: Sequence[str], *, quiet: bool, as_json: bool) -> int:
    """Run this process's command for each account, and return the overall exit status.

    A line with the account's name precedes its output; with `quiet` only if it reports an error. In JSON, each line
    names its account. Ctrl-C and SIGTERM are passed on, and no other account is started after them.
    """
    limit_waiting()  # the processes wait for this one
    signals: list[int] = []
    started: list[subprocess.Popen[str]] = []

    def on_signal(number: int, _frame: object) -> None:
        signals.append(number)
        for process in started:
            process.send_signal(number)  # ignored by processes that have ended

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    statuses: list[int] = []
    for name in names:
        if signals:
            statuses.append(EXIT_STOPPED)
            break
        if not quiet:
            heading = sys.stderr if as_json else sys.stdout
            heading.write(f"{name}:\n")
            heading.flush()
        with subprocess.Popen(  # noqa: S603 - as this process was started
            [sys.executable, *sys.argv],
            env={**os.environ, ACCOUNT_VARIABLE: name},
            text=True,
            errors="replace",
            stdout=subprocess.PIPE if as_json else None,
            stderr=subprocess.PIPE if quiet and not as_json else None,
            start_new_session=True,  # the terminal would send Ctrl-C a second time
        ) as process:
            started.append(process)
            if signals:  # it arrived while the process started
                process.send_signal(signals[0])
            for line in process.stdout or ():
                sys.stdout.write(_with_account(line, name))
                sys.stdout.flush()
            for count, line in enumerate(process.stderr or ()):
                sys.stderr.write(line if count else f"{name}:\n{line}")
        # A signal kills a process that does not handle it yet.
        statuses.append(EXIT_STOPPED if signals and process.returncode < 0 else process.returncode)
    return combine_statuses(statuses)


def combine_statuses(statuses: Sequence[int]) -> int:
    """Return the most urgent exit status of the accounts. A locked account is no failure if others ran."""
    if set(statuses) == {EXIT_LOCKED}:
        return EXIT_LOCKED
    own = (0, EXIT_USAGE, EXIT_INCOMPLETE, EXIT_LOCKED, EXIT_STOPPED)
    # A killed process counts as failed.
    own_statuses = [status if status in own else EXIT_FAILED for status in statuses]
    by_urgency = (EXIT_STOPPED, EXIT_FAILED, EXIT_USAGE, EXIT_INCOMPLETE)
    return next((status for status in by_urgency if status in own_statuses), 0)


def _with_account(line: str, name: str) -> str:
    """Add the account's name to a line of JSON. Returns other lines unchanged."""
    try:
        value = json.loads(line)
    except ValueError:
        return line
    with_name = (
        [{"account": name, **entry} for entry in value] if isinstance(value, list) else {"account": name, **value}
    )
    return json.dumps(with_name) + "\n"
