"""Several accounts in one warehouse: each is configured in `[accounts.NAME]`, and has a job of its own.

The accounts share no file and no lock, so one that fails or takes long stops no other. What they have in common is how
readers see them: as one table for those of all, with the account before every key.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO

from msgbubbles_sync.settings import ACCOUNT_VARIABLE, setting_of_sync
from msgbubbles_sync.workspace import UsageError

# Exit statuses.
LOCKED, STOPPED = 75, 130
PARALLEL = 4


def parallel() -> int:
    """How many accounts are worked on at once."""
    value = setting_of_sync("parallel_accounts", PARALLEL)
    if not re.fullmatch(r"[1-9]\d*", str(value)):
        raise UsageError("[sync] parallel_accounts is a whole number, 1 at least; mend dlt_config/config.toml")
    return int(value)


def run_each(names: Sequence[str], *, at_once: int, quiet: bool, as_json: bool) -> int:
    """Run this process's command for every account, each in a process of its own, and return what their exit statuses
    come to. More than one at once are told apart by their names at the beginning of each line; otherwise they have the
    terminal, one after another. As JSON, each says what it is about.

    A signal stops each after the request in flight, a second one at once; none of them is left running."""
    running: set[subprocess.Popen[str]] = set()
    signals: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        signals.append(number)
        for process in list(running):
            process.send_signal(number)

    def run(name: str) -> int:
        if signals:
            return STOPPED
        if at_once == 1 and not (quiet or as_json):
            sys.stdout.write(f"{name}:\n")
            sys.stdout.flush()
        with _started(name, at_once, as_json) as process:
            running.add(process)
            if signals:  # it began when the others were told
                process.send_signal(signals[0])
            status = process.wait()
            running.discard(process)
        # By a signal that came before it minded any.
        return STOPPED if signals and status < 0 else status

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(at_once) as pool:
            return overall(list(pool.map(run, names)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def overall(statuses: Sequence[int]) -> int:
    """The exit status of several: what most asks for somebody. Another job that runs on one account is no fault, while
    there is work on others."""
    if set(statuses) == {LOCKED}:
        return LOCKED
    # One that was killed counts as failed.
    known = [status if status in (0, 2, 3, LOCKED, STOPPED) else 1 for status in statuses]
    return next((status for status in (STOPPED, 1, 2, 3) if status in known), 0)


@contextmanager
def _started(name: str, at_once: int, as_json: bool) -> Iterator[subprocess.Popen[str]]:
    """This command once more, for one account. Its key is in the files or in the environment, as it is here."""
    with subprocess.Popen(  # noqa: S603 - as this process was started
        [sys.executable, *sys.argv],
        env={**os.environ, ACCOUNT_VARIABLE: name, "COLUMNS": str(_columns() - len(name) - 3)},
        text=True,
        errors="replace",
        stdout=subprocess.PIPE if at_once > 1 or as_json else None,
        stderr=subprocess.PIPE if at_once > 1 else None,
        start_new_session=True,  # Ctrl-C comes from here, once
    ) as process:
        said = [
            _following(
                process.stdout, sys.stdout, lambda line: _labelled(line, name) if as_json else f"{name} | {line}"
            ),
            _following(process.stderr, sys.stderr, lambda line: f"{name} | {line}"),
        ]
        yield process
        for thread in said:
            thread.join()


def _following(source: IO[str] | None, target: IO[str], shown: Callable[[str], str]) -> threading.Thread:
    def follow() -> None:
        for line in source or ():
            # Whoever listens may have gone; what is said to nobody must not hold up who says it.
            with suppress(OSError):
                target.write(shown(line.rstrip("\n")) + "\n")
                target.flush()

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def _labelled(line: str, name: str) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        return line
    if isinstance(found, list):
        return json.dumps([{"account": name, **one} for one in found])
    return json.dumps({"account": name, **found})


def _columns() -> int:
    try:
        return max(os.get_terminal_size().columns, 60)
    except OSError:
        return 120
