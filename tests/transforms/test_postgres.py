"""Tests that the models build the same rows on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pytest
from jinja2 import Environment

from helpers.catalog import describe
from helpers.marts_engines import FULL_ACCOUNT, ZONE, build_account, check_full_build, check_increments
from helpers.message_reference import World
from helpers.sizes import pick_size
from helpers.turns_reference import BUSINESS, dbt_variables
from msgbubbles.handles import fold_handle
from msgbubbles_sync.tables import TABLES

SPELLINGS = (
    "+541123456789", "+5491123456789", "+54911234567890", "+525512345678", "+5215512345678", "+521551234567",
    "+5511987654321", "+551187654321", "+5511912345678", "+2290161234567", "+22961234567", "+1 (415) 555-0111",
    "+14155550111", "Ben@Example.COM", "p_abcdefghijklmnopqrstuvwx", "Unknown", "4155550111",
)  # fmt: skip
VARS = ("--vars", dbt_variables(BUSINESS, ZONE))


@pytest.fixture
def server(new_role: Callable[..., str], postgres_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables with which libpq finds an empty database.

    The role may use the schemas and create none, and its search path leads to tables of the same names.
    """
    job = new_role("job")
    with closing(psycopg2.connect(postgres_address)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER ROLE {job} SET search_path = mine, public")
        for schema in ("msgbubbles", "staging", "marts", "mine"):
            cursor.execute(f"CREATE SCHEMA {schema}; GRANT USAGE, CREATE ON SCHEMA {schema} TO {job}")
        cursor.execute("CREATE TABLE mine.messages (x int); CREATE TABLE mine.loads (x int)")
    found = psycopg2.extensions.parse_dsn(postgres_address)
    variables = {"PGHOST": found["host"], "PGPORT": found.get("port", "5432"), "PGUSER": job}
    for name, value in {**variables, "PGPASSWORD": "", "PGDATABASE": found["dbname"]}.items():
        monkeypatch.setenv(name, value)


class Postgres:
    """The tables on the server. dbt runs with the rights of a role that may create no schemas."""

    def __init__(self, warehouse: Any, folder: Path) -> None:
        self._warehouse, self._folder = warehouse, folder
        self.execute(*(statement for statement in warehouse.ddl if not statement.startswith("create schema")))

    def dbt(self, *command: str) -> Any:
        return self._warehouse.dbt(command[0], "--target", "postgres", *command[1:], folder=self._folder)

    def build(self, *, is_full: bool = False) -> None:
        answer = self.dbt("run", *VARS, *(["--full-refresh"] if is_full else []))
        assert answer.exception is None
        assert {node.node.name: node.message for node in answer.result if node.status != "success"} == {}

    def execute(self, *statements: str, values: Any = None) -> None:
        with closing(psycopg2.connect("")) as connection, connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement, values)

    def load(self, load_id: str, tables: World) -> None:
        for table, rows in tables.items():
            for row in rows:
                values = {"_fetched_at": "2026-06-01 00:00:00+00"} | row if table == "numbers" else row
                values = values | {"_dlt_load_id": load_id}
                key = " and ".join(f"{name} = %({name})s" for name in TABLES[table].key)
                self.execute(
                    f"delete from msgbubbles.{table} where {key}",
                    f"insert into msgbubbles.{table} ({', '.join(values)})"
                    f" values ({', '.join(f'%({name})s' for name in values)})",
                    values=values,
                )
        self.execute("insert into msgbubbles._dlt_loads values (%(id)s, '', 0, now(), '')", values={"id": load_id})

    def comments(self, name: str) -> dict[str, str]:
        """Return the comments of a mart's columns by name, and under the empty name that of the mart."""
        with closing(psycopg2.connect("")) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select coalesce(attname, ''), description from pg_description left join pg_attribute"
                " on attrelid = objoid and attnum = objsubid and attnum > 0 where objoid = %s::regclass",
                [f"marts.{name}"],
            )
            return dict(cursor.fetchall())

    def mart(self, name: str) -> list[dict[str, Any]]:
        with closing(psycopg2.connect("")) as connection, connection.cursor() as cursor:
            cursor.execute("set time zone 'UTC'")
            cursor.execute(f"select * from marts.{name}")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("seed", range(FULL_ACCOUNT, FULL_ACCOUNT + pick_size(1, nightly=5)))
def test_marts_on_postgres_equal_the_reference(seed: int, warehouse: Any, tmp_path: Path) -> None:
    """Those on DuckDB equal it in test_reference.py, on more random accounts."""
    postgres, account = Postgres(warehouse, tmp_path), build_account(seed)
    marts = check_increments(postgres, account, (40, 4) if seed == FULL_ACCOUNT else (40, 4, 4, 4))
    manifest = warehouse.load_manifest()
    described = {node.name: describe(node) for node in manifest.nodes.values() if node.resource_type == "model"}
    for name, rows in marts.items() if seed == FULL_ACCOUNT else ():
        assert len(rows) > (2 if name == "contact_retention" else 3), name
        assert ["", *rows[0]] == list(described[name]), name
        assert postgres.comments(name) == described[name], "an increment replaces the views"
    postgres.execute(  # as a release with other bookkeeping leaves it
        "alter table staging.thread_tails drop column since",
        "alter table staging.thread_chats add column former integer not null default 1",
    )
    check_full_build(postgres, account)

    touched = json.dumps(json.loads(VARS[1]) | {"full_tests": False})
    answer = postgres.dbt("test", "--vars", touched, "--exclude-resource-type", "unit_test")
    errors = {node.node.name: node.message for node in answer.result if node.status == "error"}
    assert errors == {}  # tests may fail on these rows, but must run


@pytest.mark.usefixtures("server")
def test_handles_fold_in_sql_as_in_python() -> None:
    macros = Path(__file__).parents[2] / "transforms" / "macros" / "dialects.sql"
    template = Environment(autoescape=False).from_string(macros.read_text())  # noqa: S701 - SQL
    folded = template.module.folded_handle("handle")  # type: ignore[attr-defined]
    expected = [(fold_handle(handle),) for handle in SPELLINGS]
    rows = ", ".join(f"({number}, '{handle}')" for number, handle in enumerate(SPELLINGS))
    query = f"select {folded} from (values {rows}) as spellings (number, handle) order by number"
    assert duckdb.sql(query).fetchall() == expected
    with closing(psycopg2.connect("")) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        assert cursor.fetchall() == expected
