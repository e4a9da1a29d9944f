"""PgBouncer in transaction mode before a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from helpers.context import build_destination
from helpers.s3 import find_free_port
from msgbubbles_sync.destinations import server
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import AnotherJobRunsError
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

POOLER = shutil.which("pgbouncer")
CONFIGURATION = """[databases]
{database} = host={host} dbname={database} user={role}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""


@pytest.fixture
def role(new_role: Callable[..., str], postgres_server: str) -> str:
    """Create the job's role with the settings that the documentation asks for."""
    role = new_role("pooled")
    with closing(psycopg2.connect(postgres_server)) as admin, admin, admin.cursor() as cursor:
        for setting in ("timezone = 'UTC'", "lock_timeout = '60s'", "statement_timeout = '1h'"):
            cursor.execute(f"ALTER ROLE {role} SET {setting}")
    return role


@pytest.fixture
def start_pooler(role: str, postgres_address: str, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Return a function that starts a pooler with more lines of configuration, and returns its address."""
    if POOLER is None:
        pytest.skip("pgbouncer is not installed (apt install pgbouncer)")
    server = parse_dsn(postgres_address)
    with closing(psycopg2.connect(postgres_address)) as admin, admin, admin.cursor() as cursor:
        cursor.execute(f"GRANT CREATE ON DATABASE {server['dbname']} TO {role}")
    processes = []

    def start(*lines: str) -> str:
        port, log = find_free_port(), tmp_path / "pgbouncer.log"
        text = CONFIGURATION.format(database=server["dbname"], host=server["host"], role=role, port=port)
        # It refuses to run as root, and the user of the server cannot read the folder of the test.
        descriptor = os.memfd_create("pgbouncer.ini", 0)
        os.write(descriptor, "\n".join([text, *lines, ""]).encode())
        user = Path(server["host"]).stat().st_uid if os.getuid() == 0 else None
        command = [str(POOLER), f"/proc/self/fd/{descriptor}"]
        with log.open("w") as output:
            process = subprocess.Popen(command, stderr=output, user=user, pass_fds=[descriptor])
        os.close(descriptor)
        processes.append(process)
        address = f"postgresql://{role}@127.0.0.1:{port}/{server['dbname']}"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(psycopg2.OperationalError), closing(psycopg2.connect(address)):
                return address
            time.sleep(0.05)
        raise RuntimeError(log.read_text())

    yield start
    for process in processes:
        process.terminate()
        process.wait()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.from_path(tmp_path / "company.duckdb", "postgres")
    workspace.make_folders()
    workspace.configure_dlt()
    return workspace


def test_job_works_behind_a_pooler_in_transaction_mode(
    start_pooler: Callable[..., str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", start_pooler("ignore_startup_parameters = options"))
    destination = build_destination(workspace)
    destination.prepare()
    monkeypatch.setattr(server, "LOCK_WAIT_SECONDS", 0.0)
    with destination.lock(), pytest.raises(AnotherJobRunsError), build_destination(workspace).lock():
        pass
    for text in ("before", "now"):
        pipeline = build_pipeline(destination)
        rows = [{"id": str(number), "error_code": text} for number in range(100)]
        pipeline.run(rows, table_name="failed_reads", write_disposition="merge", primary_key="id")
    with destination.open_writer() as connection:
        for statement in ("CREATE SCHEMA marts_build", "CREATE TABLE marts_build.daily AS SELECT 1 AS n"):
            connection.execute(statement)
    with destination.open_build():
        pass
    destination.publish()
    with destination.rewrite_rows() as connection:
        connection.execute("DELETE FROM msgbubbles.failed_reads WHERE id = '7'")
    destination.remove_old_versions()
    with destination.open_reader() as connection:
        counts = connection.execute("SELECT count(*), min(error_code) FROM msgbubbles.failed_reads").fetchall()
        assert counts == [(99, "now")]
        assert connection.execute("SELECT n FROM marts.daily").fetchall() == [(1,)]


def test_pooler_that_refuses_startup_options_is_explained(
    start_pooler: Callable[..., str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", start_pooler())
    with pytest.raises(UsageError, match=r"ignore_startup_parameters = options in pgbouncer\.ini"):
        build_destination(workspace).prepare()
