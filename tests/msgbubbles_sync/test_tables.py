from __future__ import annotations

from pathlib import Path

import yaml

from msgbubbles_sync.tables import TABLES

SOURCES = Path(__file__).parents[2] / "transforms" / "models" / "staging" / "_sources.yml"


def test_every_table_and_column_is_described_in_sentences() -> None:
    for table in TABLES.values():
        texts = [table.description, *(column.description for column in table.columns)]
        assert all(text.endswith(".") for text in texts), table.name


def test_dbt_describes_the_loaded_tables_in_the_same_words() -> None:
    sources = yaml.safe_load(SOURCES.read_text())["sources"][0]["tables"]
    documented = {table["name"]: table for table in sources if table["name"] in TABLES}
    assert len(documented) > 10
    for name, table in documented.items():
        assert table["description"].strip() == TABLES[name].description
        described = {column["name"]: column["description"].strip() for column in table["columns"]}
        assert described == {column.name: column.description for column in TABLES[name].columns}, name
