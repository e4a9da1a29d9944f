"""The wheel, in environments that hold nothing but what it asks for.

The distributions that an extra asks for are linked from the environment of the tests, file by file. So a test takes no
package index, needs no cache, and sees an import that no extra declares fail.
"""

from __future__ import annotations

import ensurepip
import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from importlib.util import cache_from_source
from pathlib import Path
from zipfile import ZipFile

import duckdb
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.process import inherited_environment, run_process
from helpers.served import serve_seeded
from helpers.sizes import IS_NIGHTLY
from msgbubbles_sync.sandbox import Server

ROOT = Path(__file__).parents[2]
# dbt-core runs without it; it is an sdist that downloads a binary while it installs.
NOT_NEEDED = "dbt-core-experimental-parser"
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, f"{sys.argv[1]}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the repository, because setuptools writes next to what it builds."""
    copy = tmp_path_factory.mktemp("repository")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__", "logs", "dbt_packages", "*.egg-info")
    for name in ("pipelines", "transforms"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    (copy / "transforms" / "target").mkdir(exist_ok=True)
    (copy / "transforms" / "target" / "manifest.msgpack").touch()
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=copy, capture_output=True, check=True)
    (found,) = (copy / "dist").glob("*.whl")
    return found


class Environment:
    """A virtual environment with the wheel, and what it and some of its extras ask for."""

    def __init__(self, folder: Path, pip: Path, wheel: Path, extras: tuple[str, ...], others: tuple[str, ...]) -> None:
        venv.create(folder / "venv")
        self.bin = folder / "venv" / "bin"
        self.folder = folder / "outside"
        self.folder.mkdir()
        install = ("-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet", "--no-index", "--no-deps")
        self.call(sys.executable, *install, str(wheel), PYTHONPATH=str(pip))
        (self.packages,) = (folder / "venv" / "lib").glob("*/site-packages")
        (metadata,) = self.packages.glob("msgbubbles_sync-*.dist-info")
        for found in _closure(PathDistribution(metadata), extras, others):
            _link(found, self.packages)

    def variables(self, **others: str) -> dict[str, str]:
        """Return the environment of a user who has nothing configured."""
        inherited = {
            name: value
            for name, value in inherited_environment().items()
            if not re.match(r"PYTHON|DLT_|MSGBUBBLES|XDG_|SOURCES__|RUNTIME__|LOAD__|NORMALIZE__|EXTRACT__|PIP_", name)
        }
        # Root's dlt would work in a folder of the machine.
        return {**inherited, "HOME": str(self.folder), "DLT_DATA_DIR": str(self.folder), **others}

    def run(self, *command: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python outside the repository, and check its exit status."""
        return self.call("python", *command, status=status, **variables)

    def call(self, program: str, *command: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, and check its exit status."""
        done = subprocess.run(
            [str(self.bin / program), *command],
            cwd=self.folder,
            env=self.variables(**variables),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done


def _closure(package: Distribution, extras: tuple[str, ...], others: tuple[str, ...]) -> Iterator[Distribution]:
    """Yield each distribution that the package asks for, and what it asks for itself."""
    name = canonicalize_name(package.name)
    met = set()
    asked = [(name, extra) for extra in ("", *extras)] + [(other, "") for other in others]
    while asked:
        one = asked.pop()
        if one in met or one[0] == NOT_NEEDED:
            continue
        met.add(one)
        try:
            found = package if one[0] == name else distribution(one[0])
        except PackageNotFoundError:
            pytest.fail(f"{one[0]} is required and not locked")
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": one[1]}):
                asked += [(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)]
        if one[0] != name and not one[1]:
            yield found


def _link(found: Distribution, packages: Path) -> None:
    """Link a distribution's modules, with their compiled code, into another environment."""
    for file in found.files or ():
        source, target = Path(str(file.locate())), packages / file
        if ".." in file.parts or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
        if source.suffix == ".py" and (compiled := Path(cache_from_source(str(source)))).exists():
            cached = Path(cache_from_source(str(target)))
            cached.parent.mkdir(exist_ok=True)
            if not cached.exists():
                cached.symlink_to(compiled)


@pytest.fixture(scope="session")
def new_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    made: dict[object, Environment] = {}
    # The pip of an environment with pip, which takes seconds to make.
    pip = tmp_path_factory.mktemp("pip")
    (bundled,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    ZipFile(bundled).extractall(pip)

    def make(*extras: str, others: tuple[str, ...] = ()) -> Environment:
        key = (extras, others)
        if key not in made:
            made[key] = Environment(tmp_path_factory.mktemp("environment"), pip, wheel, extras, others)
        return made[key]

    return make


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_seeded(chats=40, messages=200) as server:
        yield server


def test_wheel_holds_two_packages_and_the_models(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"msgbubbles", "msgbubbles_sync"}
    inside = "msgbubbles_sync/transforms/"
    packed = {name.removeprefix(inside) for name in names if name.startswith(inside)}
    top = ROOT / "transforms"
    listed = {path.relative_to(top) for path in top.rglob("*") if path.is_file() and path.name != "README.md"}
    sources = {path.as_posix() for path in listed if path.parts[0] not in ("target", "logs", "dbt_packages")}
    assert packed == {name for name in sources if not name.startswith(".")}


def test_client_alone_imports_no_dlt(new_environment: Callable[..., Environment], server: Server) -> None:
    script = """
import sys
from msgbubbles import Client
with Client.connect(*sys.argv[1:3]) as client:
    print(len(client.list_numbers().rows))
assert not {"dlt", "duckdb", "pyarrow", "pandas"} & sys.modules.keys()
"""
    environment = new_environment()
    done = environment.run("-c", script, server.key, server.url)
    assert int(done.stdout) == len(server.truth().numbers)


def test_package_without_extras_has_the_source_and_the_client(new_environment: Callable[..., Environment]) -> None:
    new_environment().run("-c", IMPORT_ALL, "msgbubbles")


def test_five_lines_of_the_docs_load_everything(new_environment: Callable[..., Environment], server: Server) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), flags=re.DOTALL)
    (block,) = (block for block in blocks if "msgbubbles_source" in block)
    counted = block + 'print(pipeline.dataset().messages.select("id").arrow().num_rows)\n'
    environment = new_environment(others=("duckdb",))
    done = environment.run(
        "-c",
        counted,
        SOURCES__MSGBUBBLES__API_KEY=server.key,
        SOURCES__MSGBUBBLES__BASE_URL=server.url,
        RUNTIME__DLTHUB_TELEMETRY="false",
    )
    assert int(done.stdout) == len(server.truth().messages)


def test_installed_command_runs_the_demo(new_environment: Callable[..., Environment]) -> None:
    environment = new_environment("sync")
    # The data tests take seconds; test_demo.py runs them. So does dbt, which finds by day that its files are there.
    demo = ("chats", "--sandbox", "--database", "demo.duckdb", *([] if IS_NIGHTLY else ["--no-transform"]))
    printed = environment.call("msgbubbles", *demo, TRANSFORMS__DATA_TESTS="off").stdout
    assert "messages" in printed
    find = "from msgbubbles_sync.dbt.project import PROJECT as top; print((top / 'dbt_project.yml').exists(), top)"
    assert environment.run("-c", find).stdout == f"True {environment.packages / 'msgbubbles_sync' / 'transforms'}\n"
    with duckdb.connect(str(environment.folder / "demo.duckdb"), read_only=True) as connection:
        tables = {"msgbubbles.messages": "count(*)"}
        if IS_NIGHTLY:
            tables["marts.thread_activity"] = "sum(messages_total)"
        for table, total in tables.items():
            assert connection.execute(f"SELECT {total} FROM {table}").fetchone() == (6000,)
    status = environment.call("msgbubbles", "chats", "status", "--sandbox", "--database", "demo.duckdb", "--json")
    assert json.loads(status.stdout)


def test_application_has_what_its_extras_ask_for(new_environment: Callable[..., Environment]) -> None:
    environment = new_environment("groups", "postgres", "webhooks")
    environment.run("-c", IMPORT_ALL, "msgbubbles_sync", DLT_PROJECT_DIR=str(environment.folder))


@pytest.mark.parametrize("command", ["chats", "groups", "webhooks"])
def test_installed_command_is_the_script(new_environment: Callable[..., Environment], command: str) -> None:
    printed = new_environment("sync").call("msgbubbles", command, "--help", COLUMNS="100").stdout
    script = run_process(
        [sys.executable, str(ROOT / "pipelines" / f"{command}.py"), "--help"],
        env={**inherited_environment(), "COLUMNS": "100"},
        capture_output=True,
        check=True,
    ).stdout
    named = re.sub(r"(?:python pipelines/)?\b(chats|groups|webhooks)\.py\b", r"msgbubbles \1", script)
    assert printed.split() == named.split()
    assert "pipelines" not in printed


def test_missing_extra_is_named(new_environment: Callable[..., Environment]) -> None:
    alone = new_environment()
    refused = alone.call("msgbubbles", "chats", "--sandbox", status=2)
    assert refused.stderr.endswith(" is not installed: pip install '/path/to/project[sync]'\n")
    assert "Traceback" not in refused.stderr
    refused = alone.run("-c", "import msgbubbles_sync.groups.dlt_destination", status=1)
    assert refused.stderr.endswith("pip install '/path/to/project[groups]'\n")
    environment = new_environment("sync")
    refused = environment.call("msgbubbles", "webhooks", "serve", status=2)
    assert "pip install '/path/to/project[webhooks]'" in refused.stderr


def test_command_that_does_not_exist_is_refused(new_environment: Callable[..., Environment]) -> None:
    assert "chats" in new_environment().call("msgbubbles", "--help", status=2).stdout
    environment = new_environment("sync")
    assert "Did you mean 'chats'?" in environment.call("msgbubbles", "chat", status=2).stderr
