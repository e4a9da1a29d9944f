"""README, configuration and code say the same."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from job import CHATS, inherited_environment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIG = (ROOT / "dlt_config" / "config.toml").read_text()


def documented(section: str) -> dict[str, object]:
    """The keys of a section of config.toml, those too that are commented out."""
    body = CONFIG.split(f"[{section}]\n")[1].split("\n[")[0]
    return tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", body, flags=re.MULTILINE))


def in_readme(section: str) -> dict[str, str]:
    table = README.split(f"| key of `[{section}]` |")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, flags=re.MULTILINE))


def test_every_key_of_the_source_is_documented_with_its_default() -> None:
    from msgbubbles import msgbubbles_source

    parameters = inspect.signature(msgbubbles_source).parameters
    arguments = {name: parameter.default for name, parameter in parameters.items() if name not in ("api_key", "run")}
    assert documented("sources.msgbubbles").keys() == arguments.keys()
    assert in_readme("sources.msgbubbles").keys() == {*arguments, "api_key"}
    for name, value in tomllib.loads(CONFIG)["sources"]["msgbubbles"].items():
        assert value == arguments[name]
        assert str(value) == in_readme("sources.msgbubbles")[name].strip("`")
    for name in arguments.keys() - tomllib.loads(CONFIG)["sources"]["msgbubbles"].keys():
        assert arguments[name] is None, "what is commented out has no default"


def test_the_jobs_own_keys_are_documented() -> None:
    assert {name: str(value) for name, value in documented("sync").items()} == in_readme("sync")


@pytest.fixture(scope="module")
def help_text() -> str:
    done = subprocess.run(
        [sys.executable, str(CHATS), "sync", "--help"],
        env=inherited_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_every_option_is_documented(help_text: str) -> None:
    options = set(re.findall(r"^\s+(--[\w-]+)", help_text, flags=re.MULTILINE)) - {"--help"}
    assert set(re.findall(r"^\| `(--[\w-]+)", README, flags=re.MULTILINE)) == options


def test_every_exit_status_is_documented() -> None:
    code = set(re.findall(r"\d+", re.search(r"^EXIT_.* = (.*)$", CHATS.read_text(), flags=re.MULTILINE)[1]))  # type: ignore[index]
    table = README.split("| exit status | |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)) == {"0", *code}


def test_the_folders_named_exist() -> None:
    layout = README.split("## Where things are")[1]
    paths = re.findall(r"^(\w\S*)  ", layout, flags=re.MULTILINE)
    assert len(paths) >= 6
    for path in paths:
        assert (ROOT / path).exists(), path
