"""The files of deploy/: what they name exists, and each is valid for the program that reads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted([*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_run_a_script_that_exists(unit: Path, tmp_path: Path) -> None:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read(unit)
    if unit.suffix == ".service":
        python, script, *_ = parser["Service"]["ExecStart"].split()
        assert python == "/path/to/project/.venv/bin/python"
        assert (ROOT / script.removeprefix("/path/to/project/")).is_file()
    if program := shutil.which("systemd-analyze"):
        for path in UNITS:
            text = path.read_text().replace("/path/to/project/.venv/bin/python", sys.executable)
            (tmp_path / path.name).write_text(text)
        done = subprocess.run(
            [program, "verify", str(tmp_path / unit.name)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_image_copies_what_the_command_needs() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"requirements.lock", "pyproject.toml", "pipelines", "transforms"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_compose_builds_the_image() -> None:
    build = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["sync"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Containerfile"


def test_manifests_run_one_job_at_a_time_without_retries() -> None:
    volume, job = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert (volume["kind"], job["kind"]) == ("PersistentVolumeClaim", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert job["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    user = re.findall(r"useradd --uid (\d+)", (DEPLOY / "Containerfile").read_text())
    assert [str(pod["securityContext"]["runAsUser"])] == user


def load(name: str, folder: Path) -> Any:
    """Import a file of deploy/ with a command that prints its arguments in place of the job's."""
    program = folder / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "{\\"arguments\\": \\"$*\\"}"\n')
    program.chmod(0o700)
    copy = folder / name
    copy.write_text((DEPLOY / name).read_text().replace("/path/to/project", str(folder)))
    spec = spec_from_file_location(copy.stem, copy)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dagster_asset_runs_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dagster = pytest.importorskip("dagster", reason="dagster is not in requirements.lock")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    module = load("dagster_sync.py", tmp_path)
    result = dagster.materialize([module.msgbubbles_warehouse])
    (materialization,) = result.asset_materializations_for_node("msgbubbles_warehouse")
    assert materialization.metadata["exit_status"].value == 0
    assert materialization.metadata["summary"].value == {"arguments": f"{tmp_path}/pipelines/chats.py --json"}


def test_airflow_dag_runs_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    pytest.importorskip("airflow", reason="apache-airflow is not in requirements.lock")
    module = load("airflow_dag.py", tmp_path)
    dag = module.msgbubbles_sync()
    (task,) = dag.tasks
    assert task.skip_on_exit_code == [75]
    assert task.python_callable() == f"{tmp_path}/.venv/bin/python {tmp_path}/pipelines/chats.py --quiet"
    assert os.environ["AIRFLOW_HOME"] == str(tmp_path)
