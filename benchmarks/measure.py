"""Measure a command: wall and CPU seconds, and the peak memory of it and its children together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
CHATS = ROOT / "pipelines" / "chats.py"
SAMPLE_SECONDS = 0.02


class CommandFailedError(RuntimeError):
    """A command exited with another status than 0. The message has the end of its output."""


@dataclass(frozen=True)
class Usage:
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str = ""


def used(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] = {}) -> Usage:
    """Run a command in a folder, and return its usage. Raises `CommandFailedError`."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (folder / "output.log").open("w+") as output:
        began = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - our own commands
            [str(word) for word in command],
            cwd=folder,
            env=inherited | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        peak = _Peak(process.pid)
        _, status, resources = os.wait4(process.pid, 0)
        wall_seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        peak.stop()
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise CommandFailedError(f"{command[0]} ended with {process.returncode}: {text[-2000:]}")
    cpu_seconds = resources.ru_utime + resources.ru_stime
    return Usage(wall_seconds, cpu_seconds, peak.bytes, text)


class _Peak:
    """Watches the memory of a process and its children.

    The kernel's own figure at exit (`ru_maxrss`) is of no use, because it starts with the memory of the parent process.
    """

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(SAMPLE_SECONDS):
            pages = 0
            for pid in _tree(self._pid):
                with suppress(OSError, IndexError):
                    pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.bytes = max(self.bytes, pages * page)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _tree(int(child))


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU seconds that a running process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class PageServer:
    """A running `pages.py`."""

    url: str
    key: str
    pid: int

    def taken(self) -> dict[str, Any]:
        """Return what it has served since the previous call."""
        response = httpx.get(self.url.removesuffix("/v1") + "/_taken", trust_env=False)
        return dict(response.json())


@contextmanager
def pages(chats: int, messages: int, *options: str) -> Iterator[PageServer]:
    """Serve the pages of an account of this size in another process."""
    sizes = ["--chats", str(chats), "--messages", str(messages)]
    command = [sys.executable, str(ROOT / "benchmarks" / "pages.py"), str(BUILD / f"{chats}-{messages}"), *sizes]
    with subprocess.Popen(  # noqa: S603 - our own command
        [*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            address = json.loads(process.stdout.readline() if process.stdout else b"")
            yield PageServer(address["url"], address["key"], process.pid)
        finally:
            process.kill()


def python_of(name: str) -> Path:
    """Return the interpreter of an environment with the packages of `peers/NAME.txt`, and create it if necessary."""
    requirements = ROOT / "benchmarks" / "peers" / f"{name}.txt"
    folder = BUILD / "environments" / name
    made_from = folder / "made_from.txt"
    if not made_from.exists() or made_from.read_text() != requirements.read_text():
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), "-r", str(requirements)],
        ):
            # In another folder, so that this project's constraints do not apply to its peers.
            subprocess.run(command, check=True, cwd=tempfile.gettempdir())  # noqa: S603
        made_from.write_text(requirements.read_text())
    return folder / "bin" / "python"


def own_environment(url: str, key: str, folder: Path, requests_per_minute: int = 0) -> dict[str, str]:
    """Return the variables with which the job reaches a server of the benchmark."""
    return {
        "SOURCES__MSGBUBBLES__API_KEY": key,
        "SOURCES__MSGBUBBLES__BASE_URL": url,
        "SOURCES__MSGBUBBLES__REQUESTS_PER_MINUTE": str(requests_per_minute),
        "SOURCES__MSGBUBBLES__BUDGET_DIR": str(folder),
        "TRANSFORMS__DATA_TESTS": "off",
    }


def own_command(*options: str) -> list[str]:
    return [sys.executable, str(CHATS), "--database", "bench.duckdb", "--quiet", *options]


def fresh_folder(name: str) -> Path:
    folder = BUILD / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
