"""The worked examples of CONTRIBUTING.md, applied to a copy of the project."""

from __future__ import annotations

import re
import stat
import sys
import textwrap
from pathlib import Path

import pytest

from helpers.checkout import ROOT, copy_checkout
from helpers.process import inherited_environment, run_process
from helpers.sizes import nightly

pytestmark = pytest.mark.slow
BLOCK = re.compile(r"^   ```\w+\n(.*?)^   ```$", re.MULTILINE | re.DOTALL)
# What `number_summary` needs besides its query: its description, its reference, and the lists that a test compares.
DESCRIBED = """
  - name: number_summary
    description: One row per number of the account.
    columns:
      - name: from_handle
        description: The number.
        data_tests: [unique, not_null]
      - name: chats_total
        description: Number of its chats.
        data_tests: [not_null]
      - name: last_message_at
        description: Time of the latest message in them.
"""
REFERENCE = """

def number_summary(world: World, _zone: ZoneInfo) -> list[Row]:
    times: dict[str, list[Any]] = {}
    for chat in world["chats"]:
        if chat["from_handle"] is not None:
            times.setdefault(chat["from_handle"], []).append(chat["last_message_at"])
    return [
        {"from_handle": number, "chats_total": len(each), "last_message_at": max(filter(None, each), default=None)}
        for number, each in times.items()
    ]
"""
DRAWN = """
    number_summary {
        varchar from_handle PK
    }"""
LISTED = "\n| `marts.number_summary` | number | how many chats it has |"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path / "project")


def read_examples(section: str) -> list[str]:
    """Return the code blocks of a section."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in BLOCK.findall(body)]


def insert(path: Path, line: str, text: str) -> None:
    """Insert a text after the line of a file, with its indentation."""
    content = path.read_text()
    (found,) = re.findall(rf"^ *{re.escape(line)}\n", content, re.MULTILINE)
    indent = found[: -len(found.lstrip())]
    path.write_text(content.replace(found, found + textwrap.indent(text, indent)))


def run(project: Path, *arguments: str) -> str:
    done = run_process(
        [sys.executable, *arguments], start_anew=True, cwd=project, env=inherited_environment(), capture_output=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def test_example_of_a_destination_works(project: Path) -> None:
    package = project / "pipelines" / "msgbubbles_sync"
    (module,) = read_examples("Add a destination")
    (package / "destinations" / "team_file.py").write_text(module)
    insert(package / "destinations" / "__init__.py", '"filesystem": ParquetFiles,', '"team": TeamFile,\n')
    insert(
        package / "destinations" / "__init__.py",
        "from .parquet_files import ParquetFiles",
        "from .team_file import TeamFile\n",
    )
    names = package / "workspace.py"
    names.write_text(names.read_text().replace('"ducklake", "filesystem"]', '"ducklake", "filesystem", "team"]'))
    command = ("pipelines/chats.py", "--sandbox", "--no-transform", "--destination", "team", "--database", "a.duckdb")
    assert "Published" in run(project, *command)
    assert stat.S_IMODE((project / "a.duckdb").stat().st_mode) == 0o440


@nightly
def test_examples_of_a_column_and_a_mart_pass_the_tests_that_they_name(project: Path) -> None:
    marts, helpers = project / "transforms" / "models" / "marts", project / "tests" / "helpers"
    column, described, computed = read_examples("Add a column to a mart")
    insert(marts / "typing_daily.sql", "count(sent_at) as spells_sent,", column)
    text = (marts / "_marts.yml").read_text()
    before = "      - name: spells_unsent\n"
    text = text.replace(before, textwrap.indent(described, " " * 6) + before)
    insert(helpers / "thread_reference.py", '"spells_sent": sum(is_sent for _, is_sent in spells),', computed)
    (marts / "number_summary.sql").write_text(read_examples("Add a mart")[0])
    (marts / "_marts.yml").write_text(text.rstrip("\n") + "\n" + DESCRIBED)
    reference = helpers / "marts_reference.py"
    insert(reference, "sla_daily,", "number_summary,\n")
    code = reference.read_text().replace("import partial", "import partial\nfrom typing import Any")
    reference.write_text(code.replace("\n\nMARTS:", f"{REFERENCE}\n\nMARTS:"))
    contract, readme = project / "tests" / "transforms" / "test_contract.py", project / "transforms" / "README.md"
    insert(contract, '"typing_daily",', '"number_summary",\n')
    insert(contract, '"unique_calendar_day",', '"unique_number_summary_from_handle",\n')
    readme.write_text(
        readme.read_text()
        .replace("\n    reactions_daily {", f"{DRAWN}\n    reactions_daily {{")
        .replace("\n| `marts.typing_daily` |", f"{LISTED}\n| `marts.typing_daily` |")
    )
    tests = ("tests/transforms/test_contract.py", "tests/transforms/test_reference.py")
    run(project, "-m", "pytest", "-n0", "-q", *tests)
