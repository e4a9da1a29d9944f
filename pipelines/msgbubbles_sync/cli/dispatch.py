"""Run the command `msgbubbles`, or one of its subcommands as a script: the process, its streams, and how it ends."""

from __future__ import annotations

import atexit
import codecs
import gc
import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

from msgbubbles_sync.extras import USE_VENV, missing_extra

from .output import open_output, replace_symbols

# New objects that start a garbage collection. With Python's 700, collecting takes a fifth of the CPU time of a quiet
# run. A first load of 200,000 messages peaks 30 MB higher than with 700, and 280 MB higher without any collection.
GC_THRESHOLD = 100_000
EXIT_USAGE, EXIT_STOPPED = 2, 130  # as in `outcome`, which needs an extra to import
MIN_PYTHON = (3, 11)
SUMMARIES = {
    "chats": "Keep a warehouse up to date with a MsgBubbles account.",
    "groups": "Plan and apply the groups that a table declares.",
    "webhooks": "Receive events, and register endpoints.",
}


def main() -> None:
    """Run `msgbubbles`."""
    run("msgbubbles", sys.argv[1:], "msgbubbles")


def run(name: str, arguments: list[str], program: str) -> None:
    """Run the program of a module in this package as this process."""
    if sys.version_info < MIN_PYTHON:  # pip refuses to install the package then, but a script starts
        sys.stderr.write(f"{program} needs Python 3.11 or later: {USE_VENV}\n")
        sys.exit(EXIT_USAGE)
    gc.set_threshold(GC_THRESHOLD, 10, 10)  # before anything large is imported
    try:
        start(lambda: import_module(f".{name}", __package__).app(arguments, prog_name=program))
    except ModuleNotFoundError as error:
        if (message := missing_extra(error)) is None:
            raise
        if arguments in (["--help"], ["-h"]):
            sys.stdout.write("".join(f"{program} {name:<10} {summary}\n" for name, summary in SUMMARIES.items()))
        sys.stderr.write(f"{program}: {message}\n")
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:  # during an import: a command handles it itself
        sys.exit(EXIT_STOPPED)


def start(app: Callable[[], Any]) -> None:
    """Run a program as this process."""
    # The next file that is opened would get the number of a closed standard stream, and with it what is printed.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("symbols", replace_symbols)
    sys.stdout, sys.stderr = open_output(sys.stdout), open_output(sys.stderr)
    sys.meta_path.insert(0, HideOptional())
    # Arrow's own allocators do not return freed memory: some 30 MB here.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            _end_process(ended.code)
        raise


def _end_process(status: int) -> None:
    """Exit without taking the interpreter down, if that is safe: with what a run imports, it takes 0.2 seconds.

    Databases, locks and child processes are closed by now. Does nothing in a process without DuckDB, or with a thread
    that Python would wait for.
    """
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if "duckdb" not in sys.modules or not all(thread.daemon for thread in others):
        return
    atexit._run_exitfuncs()  # of logging, temporary files and the semaphores of dbt
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class HideOptional(MetaPathFinder):
    """Hide packages from the job that others import if they are there, and do without otherwise.

    DuckDB imports pandas with the first parameter of a query, and pyarrow with the first array, to see whether a value
    is one of its types; pyarrow imports numpy, tenacity imports tornado, and httpx its command, with rich. Together
    they are a quarter of the CPU time of a quiet run, and 38 MB. Spark does not start without numpy.
    """

    names = frozenset({"pandas", "numpy", "tornado", "httpx._main"})

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        if name in self.names and not (name == "numpy" and "pyspark" in sys.modules):
            raise ModuleNotFoundError(f"the job does not import {name}", name=name)
