"""Tests that the models can be written in the SQL of warehouses that no test can run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlglot
from sqlglot import ErrorLevel
from sqlglot.errors import SqlglotError
from sqlglot.expressions import Expression

pytestmark = pytest.mark.slow

# MotherDuck is DuckDB. The models that sqlglot cannot translate to a dialect; docs/warehouses.md lists them.
UNTRANSLATED = {
    "bigquery": {
        "backlog_daily",
        "int_business_hours",
        "int_thread_messages",
        "int_typing_spells",
        "sla_events",
        "thread_turns",
    },
    "snowflake": set(),
    "databricks": set(),
    "redshift": {"calendar", "int_business_hours"},
    "clickhouse": set(),
}
# The models that a dialect cannot even parse as they are.
UNPARSED = {
    "bigquery": {"int_business_hours", "contact", "contact_monthly"},
    "snowflake": {"int_thread_messages", "group_membership", "thread_sessions"},
    "databricks": set(),
    "redshift": {"int_business_hours"},
    "clickhouse": {"contact", "contact_monthly"},
}


def is_parsed(code: str, dialect: str) -> bool:
    try:
        return bool(sqlglot.parse(code, read=dialect, error_level=ErrorLevel.RAISE))
    except SqlglotError:
        return False


def is_translated(model: Expression, dialect: str) -> bool:
    try:
        translated = model.sql(dialect, unsupported_level=ErrorLevel.RAISE)
    except (SqlglotError, AttributeError):  # sqlglot raises the second for `values` with named columns in BigQuery
        return False
    return is_parsed(translated, dialect)


def test_each_model_is_translated_except_those_that_the_page_lists(
    warehouse: Any, caplog: pytest.LogCaptureFixture
) -> None:
    result = warehouse.dbt("compile", "--select", "resource_type:model")
    codes = {node.node.name: node.node.compiled_code for node in result.result if node.node.resource_type == "model"}
    assert len(codes) > 25
    models = {name: sqlglot.parse_one(code, read="duckdb") for name, code in codes.items()}
    with caplog.at_level(logging.ERROR, logger="sqlglot"):
        for dialect, names in UNTRANSLATED.items():
            assert {name for name, model in models.items() if not is_translated(model, dialect)} == names, dialect
            assert {name for name, code in codes.items() if not is_parsed(code, dialect)} == UNPARSED[dialect], dialect
