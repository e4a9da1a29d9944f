"""The process of a command: its output, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PIPELINES = Path(__file__).parents[3] / "pipelines"


def run_program(body: str) -> subprocess.CompletedProcess[str]:
    """Run a program that `start` makes of the lines of `body`."""
    program = f"import sys\nfrom msgbubbles_sync.cli.main import start\ndef app():\n{textwrap.indent(body, '    ')}\n"
    return subprocess.run(
        [sys.executable, "-c", program + "start(app)"],
        env={**os.environ, "PYTHONPATH": str(PIPELINES)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


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
HAS_DLT = 'sys.modules["dlt"] = types.ModuleType("dlt")'


@pytest.mark.parametrize(
    ("body", "is_taken_down"),
    [
        (HAS_DLT, False),
        ("", True),
        (HAS_DLT + '\nthreading.Thread(target=lambda: (time.sleep(0.5), print("thread done"))).start()', True),
    ],
)
def test_process_with_dlt_exits_without_interpreter_teardown(body: str, is_taken_down: bool) -> None:
    ended = run_program(ENDS.format(body=body))
    assert ended.returncode == 3, ended
    assert ("interpreter taken down" in ended.stdout) is is_taken_down
    assert "exit function" in ended.stdout
    assert "no newline" in ended.stdout
    assert ("thread done" in ended.stdout) is ("Thread" in body)
    assert ended.stderr == ""
