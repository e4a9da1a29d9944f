"""The real command as a subprocess, against the sandbox over a socket."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.process import Process, inherited_environment, run_process
from msgbubbles_sync.load_streams import LOADED_WITH
from msgbubbles_sync.sandbox import Server

CHATS = Path(__file__).parents[2] / "pipelines" / "chats.py"
# Runs a script, and has each command of dbt select some of its nodes.
SELECTING = """
import json, os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[2]))
from msgbubbles_sync.dbt import runner

selected, run = json.loads(sys.argv[1]), runner._Dbt.run
select = lambda command: ("--select", selected[command]) if command in selected else ()
runner._Dbt.run = lambda dbt, *command: run(dbt, *command, *select(command[0]))
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Selects nodes in a way that does not exist, so that a run that starts dbt fails.
NO_DBT = dict.fromkeys(("run", "test"), "no_method:dbt")


def run_demo(database: Path) -> str:
    """Run `make demo`. Returns what it prints."""
    done = run_process(
        [sys.executable, str(CHATS), "--sandbox", "--database", str(database)],
        cwd=database.parent,
        env=inherited_environment(),
        capture_output=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Outcome:
    status: int
    summary: dict[str, Any]
    errors: str

    @property
    def requests(self) -> int:
        return sum(self.summary["requests"].values())


@dataclass
class Job:
    """Runs `chats.py` on a database in a temporary folder, from another folder than the project's.

    `start_anew` runs each command in an interpreter of its own, instead of a fork of one that has imported everything.
    `selected` has the nodes that a command of dbt selects, by its name: all models or tests take seconds.
    """

    folder: Path
    server: Server
    environment: dict[str, str] = field(default_factory=dict)
    start_anew: bool = False
    selected: dict[str, str] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.folder / "company.duckdb"

    def need_dlt(self) -> None:
        """Let dlt load what the next run reads."""
        (self.folder / ".msgbubbles" / self.database.stem / LOADED_WITH).unlink(missing_ok=True)

    def start(self, *options: str, transform: bool = False) -> Process:
        return self._start((), "--json", *options, *(() if transform else ("--no-transform",)))

    def start_for_people(self, *options: str) -> Process:
        return self._start((), *options)

    def start_command(self, command: str, *options: str) -> Process:
        return self._start((command,), "--json", *options)

    def whole_environment(self) -> dict[str, str]:
        """Return the environment of a command."""
        return {
            **inherited_environment(),
            "SOURCES__MSGBUBBLES__API_KEY": self.server.key,
            "SOURCES__MSGBUBBLES__BASE_URL": self.server.url,
            "SOURCES__MSGBUBBLES__REQUESTS_PER_MINUTE": "0",
            "XDG_STATE_HOME": str(self.folder / "state"),
            "TRANSFORMS__DATA_TESTS": "off",  # they take longer than most of what is tested with a job
            **self.environment,
        }

    def _start(self, command: tuple[str, ...], *options: str) -> Process:
        selecting = ["-c", SELECTING, json.dumps(self.selected)] if self.selected else []
        return Process(
            [sys.executable, *selecting, str(CHATS), *command, "--database", "company.duckdb", *options],
            start_anew=self.start_anew,
            cwd=self.folder,
            env=self.whole_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ask(self, command: str, *options: str, status: int = 0) -> Any:
        """Run another command than sync, and return its JSON; with `--text` first, its output for people."""
        as_text = options[:1] == ("--text",)
        process = self._start((command,), *(options[1:] if as_text else ("--json", *options)))
        output, errors = process.communicate(timeout=900)
        assert process.returncode == status, (output, errors)
        return output if as_text or not output else json.loads(output)

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        output, errors = process.communicate(timeout=900)
        return Outcome(process.returncode, json.loads(output) if output else {}, errors)

    def run(self, *options: str, status: int = 0, transform: bool = False) -> Outcome:
        outcome = self.finish(self.start(*options, transform=transform))
        assert outcome.status == status, outcome
        return outcome
