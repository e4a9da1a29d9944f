"""Run every block of README and docs, in the order of the pages, in a fresh folder, and compare what it prints."""

from __future__ import annotations

import ast
import csv
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from helpers.checkout import ROOT, copy_checkout
from helpers.doc_blocks import Block, find_missing_line, read_blocks, split_console
from helpers.process import inherited_environment, install_forks
from helpers.served import serve_seeded
from msgbubbles_sync.sandbox import Server
from msgbubbles_sync.settings import load_settings

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
BLOCKS = [block for page in PAGES for block in read_blocks(page)]
# Run or parsed; a block without a language is text.
LANGUAGES = {"console", "cron", "csv", "dockerfile", "ini", "mermaid", "python", "sh", "sql", "toml", "yaml"}
CRON_LINE = re.compile(r"([\d*/,-]+ +){5}/path/to/project/\.venv/bin/python /path/to/project/pipelines/chats\.py ")
BASH = shutil.which("bash") or "/bin/bash"


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_seeded(chats=40, messages=200) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the project; `install_forks` is the set-up of `make`."""
    return copy_checkout(tmp_path / "project")


def environment(project: Path, server: Server) -> dict[str, str]:
    editor = project / "editor.sh"
    editor.write_text(f'#!/bin/sh\nsed -i "s/^api_key = .*/api_key = \\"{server.key}\\"/" "$1"\n')
    editor.chmod(0o700)
    # A test in this process may have pointed dlt at another configuration.
    others = ("MAKE", "DLT_")
    inherited = {name: value for name, value in inherited_environment().items() if not name.startswith(others)}
    return {
        **inherited,
        "EDITOR": str(editor),
        "MAKEFLAGS": "--old-file=.venv/ready",
        "SOURCES__MSGBUBBLES__BASE_URL": server.url,
        "XDG_STATE_HOME": str(project / "state"),
        "DLT_DATA_DIR": str(project / "dlt"),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "DESTINATION__GROUPS__API_KEY": server.key,
        "DESTINATION__GROUPS__BASE_URL": server.url,
        "COLUMNS": "120",
        "TRANSFORMS__DATA_TESTS": "off",  # they take most of the time of a small run; test_demo.py runs them
    }


def run(block: Block, command: list[str], project: Path, variables: dict[str, str], forks: dict[str, Any]) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command,
        cwd=project,
        **forks | {"env": variables | forks.get("env", {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{block}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


def test_blocks_run_in_order_and_print_what_is_documented(project: Path, server: Server) -> None:
    variables = environment(project, server)
    python = {**variables, "PYTHONPATH": str(project / "pipelines"), "SOURCES__MSGBUBBLES__API_KEY": server.key}
    with install_forks(project) as forks:
        for block in BLOCKS:
            if block.reason:
                continue
            if block.language == "console":
                for command in split_console(block):
                    printed = run(block, [BASH, "-c", command.text], project, variables, forks)
                    missing = find_missing_line(command.output, printed, project)
                    assert missing is None, f"{block}: {command.text}\nnot printed: {missing}\nprinted:\n{printed}"
            elif block.language == "sh":
                run(block, [BASH, "-ec", block.body], project, variables, forks)
            elif (
                block.language == "python" and "msgbubbles_source" not in block.body
            ):  # packaging/test_wheel.py runs it
                body = block.body.replace('connect("sk_live_...")', f'connect("{server.key}", "{server.url}")')
                run(block, [sys.executable, "-c", body], project, python, forks)
            elif block.language == "sql":
                with duckdb.connect(str(project / "demo.duckdb"), read_only=True) as connection:
                    connection.execute(block.body)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_is_valid_in_its_language(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = block.body
    assert block.language in LANGUAGES | {""}
    match block.language:
        case "console":
            for command in split_console(block):
                subprocess.run([BASH, "-n", "-c", command.text], check=True)
        case "sh":
            subprocess.run([BASH, "-n", "-c", body], check=True)
        case "python":
            ast.parse(body)
        case "sql":
            assert duckdb.extract_statements(body)
        case "toml":
            check_settings(block, tmp_path, monkeypatch)
        case "yaml":
            assert all(yaml.safe_load_all(body))
        case "ini":
            parser = ConfigParser(strict=False, interpolation=None)
            parser.optionxform = str  # type: ignore[method-assign, assignment]
            parser.read_string(body)
            assert parser.sections()
        case "csv":
            header, *rows = list(csv.reader(body.splitlines()))
            assert rows
            assert {len(row) for row in rows} == {len(header)}
        case "cron":
            for line in body.splitlines():
                assert re.match(r"([\d*/,-]+ +){5}/path/to/project/\.venv/bin/python /path/to/project/(\S+)", line), (
                    line
                )


def check_settings(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load a block as the file that its first line names; the job refuses settings that do not exist."""
    named = re.match(r"# (dlt_config/(?:config|secrets)\.toml)", block.body)
    assert named, f"{block}: begin with the name of the file, as # dlt_config/config.toml"
    assert tomllib.loads(block.body)
    for name in [name for name in os.environ if "__" in name.strip("_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DLT_PROJECT_DIR", str(folder))
    (folder / "dlt_config").mkdir()
    (folder / named[1]).write_text(block.body)
    load_settings()


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)|src=\"([^\"]+)\"", text)
        for path, anchor, image in links:
            target = (page.parent / (path or image or page.name)).resolve()
            assert target.exists(), f"{page.name}: {path or image} does not exist"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
                assert anchor in {build_anchor(heading) for heading in headings}, f"{page.name}: {path}#{anchor}"


def build_anchor(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_readme_fits_on_a_screen_and_names_both_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "make demo" in text
    assert "make test" in text


def test_no_text_installs_a_name_that_is_not_on_an_index() -> None:
    texts = [*PAGES, *(ROOT / "notebooks").glob("*.*"), *(ROOT / "pipelines").rglob("*.py")]
    for path in texts:
        assert not re.search(r"pip install [^\n]*msgbubbles[-_]sync", path.read_text()), path
