"""Tables as files in a folder, and whether Spark can make marts of them here."""

from __future__ import annotations

from typing import Any

import pytest

from warehouse import spark
from warehouse.destinations import destination_of
from warehouse.place import Place, UsageError

try:
    spark.require()
    reason = ""
except UsageError as error:
    reason = str(error)


def needs_spark(test: Any) -> Any:
    """Of a test that takes minutes, and is run by `make test-spark`."""
    return pytest.mark.spark(pytest.mark.skipif(bool(reason), reason=reason)(test))


def query(place: Place, sql: str) -> list[dict[str, Any]]:
    with destination_of(place).reading() as connection:
        result = connection.execute(sql)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
