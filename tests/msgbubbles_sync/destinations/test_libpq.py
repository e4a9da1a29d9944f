"""How a PostgreSQL server is reached: every parameter by every client, and no password without the TLS asked for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import quote_plus

import dlt
import duckdb
import psycopg2
import pytest
from dlt.common.configuration.providers import EnvironProvider, SecretsTomlProvider
from dlt.destinations.impl.postgres.factory import get_adbc_driver_location
from typer.testing import CliRunner

from helpers.context import build_context, build_destination
from helpers.postgres import new_database
from msgbubbles_sync.cli import chats
from msgbubbles_sync.dbt.project import PROJECT
from msgbubbles_sync.dbt.runner import transform
from msgbubbles_sync.destinations.libpq import read_parameters
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.destinations.server import explain, find_reason
from msgbubbles_sync.errors import TransformError, UsageError
from msgbubbles_sync.inspect.check import check_destination
from msgbubbles_sync.run_log import store
from msgbubbles_sync.settings import Settings, SyncSettings
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

URL, CATALOG = "DESTINATION__POSTGRES__CREDENTIALS", "DESTINATION__DUCKLAKE__CREDENTIALS__CATALOG"
SECRET = "not-for-the-wire"  # noqa: S105 - of no server
SSL_REQUEST, GSS_REQUEST = (80877103).to_bytes(4, "big"), (80877104).to_bytes(4, "big")


class WithoutTls:
    """A server that has no TLS, and keeps what clients send it all the same."""

    def __init__(self) -> None:
        self.asked, self.received = 0, b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                while data := client.recv(4096):
                    if data[4:8] not in (SSL_REQUEST, GSS_REQUEST):
                        self.received += data
                        break
                    self.asked += 1
                    client.sendall(b"N")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DLT_PROJECT_DIR", "DLT_CONFIG_FOLDER", "DLT_DATA_DIR", "DLT_LOCAL_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, str(tmp_path)))
    monkeypatch.setenv("SOURCES__MSGBUBBLES__API_KEY", "sk_test_1")


@pytest.fixture
def without_tls() -> Iterator[WithoutTls]:
    server = WithoutTls()
    yield server
    server.close()


def workspace_of(folder: Path, destination: str = "postgres") -> Workspace:
    workspace = Workspace.from_path(folder / "company.duckdb", destination)
    workspace.make_folders()
    return workspace


def run_command(command: str, workspace: Workspace) -> str:
    options = ["--destination", workspace.destination, "--database", str(workspace.database)]
    result = CliRunner().invoke(chats.app, [*command.split(), *options])
    assert result.exit_code == 2, result.output
    assert "SSL" in result.output or "certificate" in result.output
    return result.output


@pytest.mark.parametrize(
    ("destination", "command", "ssl"),
    [("postgres", "sync", "require"), ("postgres", "status", "verify-full"), ("postgres", "check", "verify-ca"),
     ("postgres", "verify --full", "require"), ("ducklake", "sync", "require"), ("ducklake", "check", "verify-full")],
)  # fmt: skip
def test_no_password_is_sent_without_required_tls(
    command: str, ssl: str, destination: str, without_tls: WithoutTls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"&sslrootcert={tmp_path}" if ssl.startswith("verify") else ""
    address = f"postgresql://job:{SECRET}@127.0.0.1:{without_tls.port}/warehouse?sslmode={ssl}{root}"
    monkeypatch.setenv(URL, address)
    monkeypatch.setenv(CATALOG, address)
    monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__STORAGE__BUCKET_URL", str(tmp_path / "lake"))
    workspace = workspace_of(tmp_path, destination)
    if command == "check":  # the rest of it asks the API
        found = check_destination(build_context(workspace))
        assert found.state == "failed"
        output = found.what
    else:
        output = run_command(command, workspace)
    assert without_tls.asked
    assert without_tls.received == b""
    assert SECRET not in output


def test_neither_dlt_nor_dbt_sends_a_password_without_tls(
    without_tls: WithoutTls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, f"postgresql://job:{SECRET}@127.0.0.1:{without_tls.port}/warehouse?sslmode=require")
    workspace = workspace_of(tmp_path)
    pipeline = build_pipeline(build_destination(workspace))
    with pytest.raises(Exception, match="SSL was required"), pipeline.sql_client():
        pass
    with pytest.raises(Exception, match="SSL was required"):
        connect_by_adbc(workspace)
    with pytest.raises(TransformError):
        transform(build_destination(workspace), Settings())
    monkeypatch.setenv(CATALOG, os.environ[URL])
    monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__STORAGE__BUCKET_URL", str(tmp_path / "lake"))
    lake = workspace_of(tmp_path, "ducklake")
    with (
        pytest.raises(Exception, match="SSL was required"),
        build_pipeline(build_destination(lake)).sql_client(),
    ):
        pass
    assert without_tls.asked >= 4
    assert without_tls.received == b""
    assert "PGPASSWORD" not in os.environ


def connect_by_adbc(workspace: Workspace) -> None:
    from adbc_driver_manager import dbapi

    pipeline = build_pipeline(build_destination(workspace))
    credentials = pipeline.destination_client().config.credentials
    assert credentials is not None
    uri = credentials.to_native_representation()
    with dbapi.connect(driver=get_adbc_driver_location(), db_kwargs={"uri": uri}):
        pass


def connect_by_dbt(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from dbt.cli.main import dbtRunner

    target, variables = build_destination(workspace).read_dbt_target()
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        folders = ("--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT), "--log-path", str(workspace.folder))
        assert dbtRunner().invoke(["debug", "--connection", "--target", target, *folders, "--quiet"]).success


def test_each_client_passes_parameters_to_the_server(
    new_role: Callable[..., str], postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "the job's \\ own+name"
    job = new_role("job", "SUPERUSER PASSWORD 'p@ss ''w/o+rd%'")
    monkeypatch.setenv("SYNC__STATEMENT_TIMEOUT_SECONDS", "0")
    with closing(psycopg2.connect(postgres_address)) as admin:
        admin.autocommit = True
        cursor = admin.cursor()
        cursor.execute(f"ALTER ROLE {job} SET statement_timeout = '7s'")
        cursor.execute("CREATE TABLE logins (name TEXT, work_mem TEXT, statement_timeout TEXT)")
        cursor.execute("""CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.logins SELECT current_setting('application_name'), current_setting('work_mem'),
                current_setting('statement_timeout');
            END $$""")
        cursor.execute("CREATE EVENT TRIGGER login ON login EXECUTE FUNCTION note()")
        database, _, folder = postgres_address.removeprefix("postgresql://postgres:@localhost/").partition("?host=")
        query = {"host": folder, "application_name": name, "options": "-c search_path=public -c work_mem=5MB"}
        text = "&".join(f"{key}={quote_plus(value)}" for key, value in query.items())
        monkeypatch.setenv(URL, f"postgresql://{job}:p%40ss%20%27w%2Fo%2Brd%25@localhost/{database}?{text}")
        workspace = workspace_of(tmp_path)

        def connect_by_dlt() -> None:
            with build_pipeline(build_destination(workspace)).sql_client():
                pass

        for connect in (
            build_destination(workspace).exists, connect_by_dlt, partial(connect_by_adbc, workspace),
            partial(connect_by_dbt, workspace, monkeypatch),
        ):  # fmt: skip
            connect()
            cursor.execute("DELETE FROM logins RETURNING *")
            assert set(cursor.fetchall()) == {(name, "5MB", "0")}, "0 is no limit, whatever that of the role is"


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sslmode=VERIFY-FULL", "sslmode must be one of disable"),
        ("sslmode=require&sslmode=disable", "sslmode must be a single text"),
        ("ssl=true", "the parameter ssl cannot be passed"),
        ("tcp_user_timeout=1000", "the parameter tcp_user_timeout cannot be passed"),
        ("sslpassword=secret-of-the-key", "the parameter sslpassword cannot be passed"),
        ("host=a,b&port=1,2", "port must be a whole number"),
        ("client_encoding=latin1", "client_encoding must be utf8"),
    ],
)
def test_parameter_unknown_to_a_client_is_refused_by_name(
    query: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, f"postgresql://job:{SECRET}@127.0.0.1:9/warehouse?{query}")
    with pytest.raises(UsageError, match=why) as refusal:
        build_destination(workspace_of(tmp_path)).exists()
    assert SECRET not in str(refusal.value)
    assert "secret-of-the-key" not in str(refusal.value)


@pytest.mark.parametrize(
    ("toml", "variables"),
    [
        ('credentials = "postgresql://job:x@h/d?sslmode=require"', {}),
        ('credentials = "postgresql://job:x@h/d"', {"QUERY": '{"sslmode": "require"}'}),
        ('credentials = "postgresql://job:x@h/d?sslmode=disable"', {"SSLMODE": "require"}),
        ('[destination.postgres.credentials]\nhost="h"\nusername="job"\ndatabase="d"\nsslmode="require"', {}),
        (
            '[destination.postgres.credentials]\nhost="h"\nusername="job"\nquery={sslmode="require"}',
            {"DATABASE": "d", "PASSWORD": "x"},
        ),
        ("", {"HOST": "h", "USERNAME": "job", "DATABASE": "d", "SSLMODE": "require"}),
    ],
)
def test_parameters_are_read_from_every_configuration_source(
    toml: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secrets.toml"
    path.write_text(f"[destination.postgres]\n{toml}" if toml.startswith("credentials") else toml)
    providers = [EnvironProvider(), SecretsTomlProvider(str(tmp_path))]
    monkeypatch.setattr(type(dlt.config), "config_providers", providers)
    for name, value in variables.items():
        monkeypatch.setenv(f"{URL}__{name}", value)
    found = read_parameters("destination.postgres.credentials", SyncSettings())
    assert found is not None
    assert (found["host"], found["user"], found["dbname"], found["sslmode"]) == ("h", "job", "d", "require")


def test_unsuitable_server_is_refused_before_the_run(
    new_role: Callable[..., str],
    postgres_server: str,
    postgres_address: str,
    worker_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__STORAGE__BUCKET_URL", str(tmp_path / "lake"))
    job, guest, standby = new_role("job"), new_role("guest"), new_role("standby", "SUPERUSER")
    options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with (
        new_database(postgres_server, f"latin_{worker_id}", options) as latin,
        closing(psycopg2.connect(postgres_address)) as admin,
    ):
        admin.autocommit = True
        cursor = admin.cursor()
        cursor.execute(f"ALTER ROLE {standby} SET default_transaction_read_only = on")

        def refusal(user: str, address: str = postgres_address, destination: str = "postgres") -> str:
            url = address.replace("postgres:@", f"{user}:@")
            monkeypatch.setenv(URL, url)
            monkeypatch.setenv(CATALOG, url)
            with pytest.raises(UsageError) as refused:
                build_destination(workspace_of(tmp_path, destination)).prepare()
            return str(refused.value)

        for destination in ("postgres", "ducklake"):
            encoding = f"the encoding of the database latin_{worker_id} is LATIN1"
            assert encoding in refusal("postgres", latin, destination)
            assert "ENCODING 'UTF8'" in refusal("postgres", latin, destination)
            grant = f'GRANT CREATE ON DATABASE "test_{worker_id}" TO "{job}"'
            assert grant in refusal(job, destination=destination)
            assert "is read-only" in refusal(standby, destination=destination)
            # As behind a pooler that drops the job's own option.
            monkeypatch.setenv("PGOPTIONS", "-c TimeZone=Asia/Tokyo")
            assert "ALTER ROLE \"postgres\" SET timezone = 'UTC'" in refusal("postgres", destination=destination)
            monkeypatch.delenv("PGOPTIONS")
        for schema in ("msgbubbles", "msgbubbles_staging", "staging", "marts_build", "marts"):
            cursor.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {job}")
        assert "GRANT USAGE, CREATE ON SCHEMA" in refusal(guest)
        # The role has its schemas, and needs no privilege on the database.
        monkeypatch.setenv(URL, postgres_address.replace("postgres:@", f"{job}:@"))
        build_destination(workspace_of(tmp_path)).prepare()
        with build_destination(workspace_of(tmp_path)).open_writer() as connection:
            store(connection, [], "warehouse.msgbubbles")


@pytest.mark.parametrize(
    ("message", "meaning", "concerns_one_table"),
    [
        (
            "ERROR: permission denied for schema marts",
            "may not write schema marts; grant it the missing privilege",
            True,
        ),
        ('must be owner of table "messages"', "make it a member of the owner's role", True),
        ("cannot execute INSERT in a read-only transaction", "is read-only", False),
        ("could not extend file: No space left on device", "the server's disk is full", False),
        ("canceling statement due to statement timeout", "[sync] statement_timeout_seconds", True),
        (
            "ERROR: tuple concurrently updated",
            "another session changed tables of the database at the same moment",
            False,
        ),
        ("server closed the connection unexpectedly", "the connection to the server was lost", False),
        ("dlt: something else", None, True),
    ],
)
def test_server_errors_are_explained(
    message: str, meaning: str | None, concerns_one_table: bool, tmp_path: Path
) -> None:
    found = explain(message, "postgres")
    assert build_destination(workspace_of(tmp_path)).concerns_one_table(message) == concerns_one_table
    assert found == meaning if meaning is None else meaning in str(found)


@pytest.mark.parametrize(
    "reason",
    [
        "the database system is starting up",
        "terminating connection due to administrator command",
        "sorry, too many clients already",
        "could not write init file",
    ],
)
def test_reason_of_a_refused_connection_is_shown_without_the_address(reason: str) -> None:
    error = duckdb.IOException(f"Unable to connect to Postgres at 'password=secret': FATAL:  {reason}\n")
    assert find_reason(error) == f": {reason}"
