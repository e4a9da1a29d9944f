"""Check that docs, configuration and code agree."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import duckdb
import msgspec
import pytest
from msgspec.structs import asdict

from helpers.context import build_destination
from helpers.job import CHATS
from helpers.process import inherited_environment, run_process
from msgbubbles.settings import DEFAULTS, build_source_settings
from msgbubbles_sync import outcome
from msgbubbles_sync.service_levels import BusinessHours, ServiceLevels
from msgbubbles_sync.settings import SyncSettings, TransformSettings, WebhookSettings, load_settings
from msgbubbles_sync.workspace import Workspace

ROOT = Path(__file__).parents[1]
CLI = ROOT / "pipelines" / "msgbubbles_sync" / "cli"
DOCS = ROOT / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text()
COMMANDS = (DOCS / "commands.md").read_text()
CONFIG = (ROOT / "dlt_config" / "config.toml").read_text()


def documented(section: str) -> dict[str, object]:
    """Return the keys of a section of config.toml, including those that are commented out."""
    body = CONFIG.split(f"[{section}]\n")[1].split("\n[")[0]
    return tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", body, flags=re.MULTILINE))


def test_make_docs_skips_files_without_marts(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "bare.duckdb")) as connection:
        connection.execute("CREATE TABLE loaded AS SELECT 1")
    files = [tmp_path / "bare.duckdb", tmp_path / "nowhere.duckdb"]
    command = [
        "make",
        "--no-print-directory",
        "--old-file=.venv/ready",
        "docs",
        f"DATABASES={' '.join(map(str, files))}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == [
        f"Skipped {files[0]}, because it has no marts. Run the sync without --no-transform.",
        f"{files[1]} does not exist.",
        "There is no database with marts. Run make demo, or make docs DATABASE=path/to/the.duckdb",
    ]
    assert done.returncode == 2


def test_make_docs_documents_a_file_that_lacks_some_marts(tmp_path: Path) -> None:
    database, bin_folder = tmp_path / "half.duckdb", tmp_path / ".venv" / "bin"
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE SCHEMA marts; CREATE TABLE marts.calendar AS SELECT 1 AS day")
    database.chmod(0o440)  # as it is published
    bin_folder.mkdir(parents=True)
    # In the place of dbt, which takes ten seconds: it opens the copy to write to it.
    for name, program in {"python": f'{sys.executable} "$@"', "dbt": 'ls -l "$MSGBUBBLES_DUCKDB_PATH"'}.items():
        (bin_folder / name).write_text(f"#!/bin/sh\nexec {program}\n")
        (bin_folder / name).chmod(0o755)
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "--old-file=.venv/ready", "docs"]
    done = subprocess.run(
        [*command, f"DATABASES={database}"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    listed, says = done.stdout.splitlines()
    assert listed.startswith("-rw-------")
    assert says == f"Open {tmp_path}/build/docs/static_index.html"


def read_key_table(section: str) -> dict[str, str]:
    table = CONFIGURATION.split(f"| key of `[{section}]` |")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, flags=re.MULTILINE))


def same_in_toml(value: object, written: str) -> bool:
    try:
        return bool(tomllib.loads(f"value = {written}")["value"] == value)
    except tomllib.TOMLDecodeError:
        return value == written


# Of a section of its own, or no configuration.
OF_OTHERS = ("api_key", "privacy", "run")


def test_every_key_of_the_source_is_documented_with_its_default() -> None:
    from msgbubbles.source import msgbubbles_source

    parameters = inspect.signature(msgbubbles_source).parameters
    arguments = {name: parameter.default for name, parameter in parameters.items() if name not in OF_OTHERS}
    assert documented("sources.msgbubbles").keys() == arguments.keys()
    assert read_key_table("sources.msgbubbles").keys() == {*arguments, "api_key"}
    assert arguments == asdict(DEFAULTS)
    set_here = tomllib.loads(CONFIG)["sources"]["msgbubbles"]
    del set_here["privacy"]
    for name, value in set_here.items():
        assert build_source_settings({name: value}) == DEFAULTS
        assert same_in_toml(value, read_key_table("sources.msgbubbles")[name].strip("`"))
    for name in arguments.keys() - set_here.keys():
        assert arguments[name] is None, "what is commented out has no default"


@pytest.mark.parametrize("section", ["sync", "transforms"])
def test_the_jobs_own_keys_are_documented(section: str) -> None:
    table = read_key_table(section)
    assert documented(section).keys() == table.keys()
    assert [
        name for name, value in documented(section).items() if not same_in_toml(value, table[name].strip("`"))
    ] == []


def test_the_marts_are_built_as_is_documented() -> None:
    sections = {"spark": {}, "business_hours": BusinessHours(), "sla": ServiceLevels()}
    assert documented("transforms") | sections == asdict(TransformSettings())
    keys = documented("transforms.business_hours").keys()
    assert keys == read_key_table("transforms.business_hours").keys() == asdict(BusinessHours()).keys()
    assert (
        documented("transforms.sla").keys() == read_key_table("transforms.sla").keys() == asdict(ServiceLevels()).keys()
    )
    hours = tomllib.loads(CONFIG)["transforms"]["business_hours"]
    assert msgspec.convert(hours, BusinessHours) == BusinessHours()


def test_the_jobs_own_keys_have_these_defaults() -> None:
    assert documented("sync") == asdict(SyncSettings())


def test_the_accounts_in_the_examples_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from msgbubbles_sync import settings

    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    (tmp_path / "dlt_config").mkdir()
    block = CONFIG.split("\n[accounts]\n")[1].split("\n\n")[0]
    shown = "\n".join(line.removeprefix("# ") for line in block.splitlines() if re.match(r"# (\[|\w+ = )", line))
    secrets = (ROOT / "dlt_config" / "secrets.toml.example").read_text().split("# Only for several accounts")[1]
    written = secrets.split("\n\n")[0].partition("\n")[2].replace("# ", "")
    (tmp_path / "dlt_config" / "config.toml").write_text(shown)
    (tmp_path / "dlt_config" / "secrets.toml").write_text(written)
    assert settings.list_account_names() == ["north", "south"]
    section = CONFIGURATION.split("\n## Several accounts\n")[1].split("\n## ")[0]
    keys, set_here = re.findall(r"```toml\n(.*?)```", section, flags=re.DOTALL)
    assert tomllib.loads(keys) == tomllib.loads(written)
    assert tomllib.loads(set_here) == tomllib.loads(shown)
    described = section.split("# also ")[1].split("\n")[0].replace(".", "").split(", ")
    assert tuple(described) == tuple(settings.OWN)


def options_of(command: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, str(CHATS), command, "--help"],
        env=inherited_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(re.findall(r"^\s+(--[\w-]+)", done.stdout, flags=re.MULTILINE)) - {"--help"}


def commands() -> list[str]:
    return re.findall(r"^@SCRIPT.command\(.*\)\ndef (\w+)", (CLI / "chats.py").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_every_command_and_each_of_its_options_is_documented(command: str) -> None:
    described = re.search(rf"^\| `{command}(?: |`)(.*)$", COMMANDS, flags=re.MULTILINE)
    assert described, f"docs/commands.md has no row for {command}"
    own = set(re.findall(r"--[\w-]+", described[0]))
    table = set(re.findall(r"^\| `(--[\w-]+)", COMMANDS, flags=re.MULTILINE))
    shared = {"--account", "--database", "--destination", "--sandbox", "--json"}
    assert shared <= table
    assert options_of(command) - shared == (table - shared if command == "sync" else own)


def test_every_exit_status_is_documented() -> None:
    code = {str(value) for name, value in vars(outcome).items() if name.startswith("EXIT_")}
    table = COMMANDS.split("| exit status | |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)) == {"0", *code}


FAULTS = ROOT / "docs" / "faults.md"
TEST = r"(tests/[\w/]+\.py)::((?:Test\w+::)?test_\w+)"


def faults() -> list[list[str]]:
    """Return the rows of the tables of faults: fault, what the product does, exit status, test."""
    heading = "| fault | what the product does | exit status | test |\n| --- | --- | --- | --- |\n"
    tables = [part.split("\n\n")[0] for part in FAULTS.read_text().split(heading)[1:]]
    # A pipe within a cell is escaped.
    rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for table in tables for line in table.splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def names_of_tests(path: Path) -> set[str]:
    """Return the names of the tests of a file, those in classes as `TestClass::test_name`."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, functions):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, functions)}
    return found


def test_each_fault_names_tests_that_exist() -> None:
    rows = faults()
    assert rows
    assert f"]({FAULTS.name})" in (DOCS / "reliability.md").read_text().split("\n## ")[0]
    for fault, does, _, cell in rows:
        assert fault
        assert does
        named = re.findall(TEST, cell)
        assert named, f"{fault}: no test is named"
        assert re.sub(rf"{TEST}|[`,;\s]", "", cell) == "", f"{fault}: name each test as tests/path/test_x.py::test_name"
        for path, test in named:
            assert (ROOT / path).is_file(), f"{fault}: {path} does not exist"
            assert test in names_of_tests(ROOT / path), f"{fault}: {path} has no {test}"


def test_each_fault_ends_with_documented_exit_statuses() -> None:
    table = COMMANDS.split("| exit status | |")[1].split("\n\n")[0]
    documented = set(re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE))
    for fault, _, status, _ in faults():
        # A server that goes on has none, in words.
        assert status, f"{fault}: no exit status"
        assert set(re.findall(r"\d+", status)) <= documented, f"{fault}: {status}"


def test_the_folders_named_exist() -> None:
    layout = (DOCS / "architecture.md").read_text().split("## Where things are")[1]
    paths = re.findall(r"^(\w\S*)  ", layout, flags=re.MULTILINE)
    assert len(paths) >= 6
    for path in paths:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("destination", "says"),
    [("postgres", "cannot be reached (IOException)"), ("ducklake", "cannot be opened (IOException)")],
)
def test_the_example_of_a_destination_is_what_a_job_reads(tmp_path: Path, destination: str, says: str) -> None:
    example = (ROOT / "dlt_config" / "secrets.toml.example").read_text()
    block = example.split(f"# Only for --destination {destination}")[1].split("\n\n")[0].partition("\n")[2]
    (tmp_path / "dlt_config").mkdir()
    written = block.replace("# ", "").replace("password@host:", "hidden-word@nowhere.invalid:")
    (tmp_path / "dlt_config" / "secrets.toml").write_text(written)
    done = run_process(
        [sys.executable, str(CHATS), "status", "--destination", destination, "--database", "some.duckdb"],
        cwd=tmp_path,
        env={**inherited_environment(), "DLT_PROJECT_DIR": str(tmp_path)},
        capture_output=True,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "hidden-word" not in done.stderr


def test_the_examples_of_files_and_of_spark_are_what_a_job_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = (ROOT / "dlt_config" / "secrets.toml.example").read_text()
    block = example.split("# Only for --destination filesystem")[1].split("\n\n")[0].partition("\n")[2]
    written = tomllib.loads(block.replace("# ", "").replace("/shared/folder", str(tmp_path / "shared")))
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", written["destination"]["filesystem"]["bucket_url"])
    workspace = Workspace.from_path(tmp_path / "some.duckdb", "filesystem")
    workspace.make_folders()
    build_destination(workspace).prepare()
    assert (tmp_path / "shared").is_dir()

    in_config = CONFIG.split("# [transforms.spark]\n")[1].split("\n\n")[0].replace("# ", "")
    page = (DOCS / "destinations.md").read_text()
    in_docs = page.split("[transforms.spark]")[1].split("\n```")[0].partition("\n")[2]
    assert tomllib.loads(in_config) == tomllib.loads(in_docs)
    monkeypatch.setenv("TRANSFORMS__SPARK", json.dumps(tomllib.loads(in_config)))
    assert load_settings().transforms.spark == {"spark.master": "spark://host:7077", "spark.executor.memory": "4g"}


PRIVACY = ROOT / "docs" / "privacy.md"


def test_every_privacy_setting_is_documented_with_what_the_presets_make_of_it() -> None:
    from msgbubbles.policy import FULL, PRESETS, Policy

    section = "sources.msgbubbles.privacy"
    assert documented(section).keys() == {"preset", "vault", *Policy.__struct_fields__}
    assert tomllib.loads(CONFIG)["sources"]["msgbubbles"]["privacy"] == {"preset": "full"}
    table = PRIVACY.read_text().split(f"| key of `[{section}]` | {' | '.join(PRESETS)} |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|", table, flags=re.MULTILINE)
    assert {name for name, *_ in rows} == set(Policy.__struct_fields__)
    for name, *values in rows:
        assert values == [str(getattr(preset, name) or "never") for preset in PRESETS.values()], name
    assert PRESETS["full"] == FULL


GROUPS = ROOT / "docs" / "groups.md"


def test_the_key_of_groups_is_documented() -> None:
    table = GROUPS.read_text().split("| key of `[groups]` |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == documented("groups").keys()


def test_the_page_on_groups_has_the_exit_statuses_of_its_help() -> None:
    help_text = (CLI / "groups.py").read_text().split("Exit status:")[1].split('"""')[0]
    table = GROUPS.read_text().split("| exit status of `groups.py` | |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)) == set(
        re.findall(r"(?:^|; |\n)\s*(\d+)\b", help_text)
    )


WEBHOOKS = ROOT / "docs" / "webhooks.md"


def test_the_keys_of_webhooks_are_documented_with_their_defaults() -> None:
    defaults = {name: getattr(WebhookSettings(), name) for name in WebhookSettings.__struct_fields__}
    table = WEBHOOKS.read_text().split("| key of `[webhooks]` |")[1].split("\n\n")[0]
    described = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", table, flags=re.MULTILINE))
    assert described.keys() == {*defaults, "secrets"}
    assert documented("webhooks").keys() == defaults.keys()
    for name, value in tomllib.loads(CONFIG)["webhooks"].items():
        assert value == defaults[name]
        assert same_in_toml(value, described[name].strip("`")), name
    assert {name for name, value in defaults.items() if value is None} == {"refresh_messages"}


def test_every_command_and_option_of_webhooks_is_documented() -> None:
    script = CLI / "webhooks.py"
    page = WEBHOOKS.read_text()
    command = r"^@SCRIPT.command\((?:.*name=\"(\w+)\")?.*\)\ndef (\w+)"
    commands = re.findall(command, script.read_text(), flags=re.MULTILINE)
    table = page.split("| `webhooks.py` command | |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)", table, flags=re.MULTILINE)) == {named or name for named, name in commands}
    for option in re.findall(r"\"(--[\w-]+)\"", script.read_text()):
        assert option in page, option


def test_the_page_on_webhooks_has_the_exit_statuses_of_its_help() -> None:
    help_text = (CLI / "webhooks.py").read_text().split("Exit status:")[1].split('"""')[0]
    table = WEBHOOKS.read_text().split("| exit status of `webhooks.py` | |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)) == set(
        re.findall(r"(?:^|; |\n)\s*(\d+)\b", help_text)
    )


def test_architecture_names_code_that_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    code = "\n".join(path.read_text() for path in (ROOT / "pipelines").rglob("*.py"))
    defined = set(re.findall(r"^\s*(?:def|class) (\w+)|^\s*(?:self\.)?(\w+)\b ?[:=]", code, flags=re.MULTILINE))
    names = {name for pair in defined for name in pair if name} | {
        path.stem for path in (ROOT / "pipelines").rglob("*.py")
    }
    names |= {path.name for path in (ROOT / "pipelines").rglob("*") if path.is_dir()}
    written = re.findall(r"`([a-z_]\w*(?:\.\w+)+|[A-Z]\w+(?:\.\w+)*)`", page)
    assert len(written) > 30
    files = (".md", ".toml", ".py")
    missing = [one for one in written if not one.endswith(files) and not set(one.split(".")) <= names]
    assert missing == []


def test_architecture_names_every_module_in_its_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer for contract in contracts for layer in contract.get("layers", ())]
    table = set(re.findall(r"`(\w+)`", (DOCS / "architecture.md").read_text().split("## A message row")[0]))
    assert {name for layer in layers for name in re.findall(r"\w+", layer)} <= table


@pytest.mark.parametrize(
    "name",
    [
        "conversations.html",
        "plan.json",
        "groups.csv",
        "backup/warehouse.duckdb",
        "dlt_config/secrets.toml",
        "deploy/.env",
        "notebooks/__marimo__/session/explore.py.json",
        "build/docs/static_index.html",
    ],
)
def test_git_ignores_files_with_personal_data(name: str, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    git = shutil.which("git")
    assert git
    subprocess.run([git, "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run([git, "check-ignore", "--quiet", name], cwd=tmp_path, check=True)


def test_each_cell_of_the_feature_table_names_a_test_or_a_reason() -> None:
    page = (ROOT / "docs" / "destinations.md").read_text()
    rows = page.split("\n| feature |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [cell.strip() for row in rows for cell in row.strip("| ").split(" | ")[1:]]
    assert len(cells) == 5 * len(rows)
    for cell in cells:
        tests = re.findall(r"`([\w/…]+\.py)`", cell)
        assert tests or re.match(r"no, |no earlier|as `\w+`", cell), cell
        for test in tests:
            assert (ROOT / "tests" / test.replace("…", "msgbubbles_sync")).exists(), test
