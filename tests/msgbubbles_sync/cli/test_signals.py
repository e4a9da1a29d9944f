"""A signal stops a command in good order; a second one at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[3] / "pipelines"
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
