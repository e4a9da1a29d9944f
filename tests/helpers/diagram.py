"""Draw the entity diagram of transforms/README.md from dbt's manifest and catalog."""

from __future__ import annotations

import re
from typing import Any

# Of the values of `where`, those of tests that check all rows once a day: see touched_keys.sql.
ALL_ROWS = (None, "touched days", "touched messages", "touched turns")
TYPES = {"TIMESTAMP WITH TIME ZONE": "timestamptz"}


def entity_diagram(manifest: dict[str, Any], catalog: dict[str, Any]) -> str:
    """Return Mermaid's erDiagram of the marts and of the models that relationship tests join.

    Entities list their keys: PK if a test checks that it is unique, FK if a test checks the reference. A test that only
    warns is drawn as a row that may be missing.
    """
    tests = [
        node for node in manifest["nodes"].values() if node["resource_type"] == "test" and node.get("test_metadata")
    ]
    models = {
        node["unique_id"]: node["name"] for node in manifest["nodes"].values() if node["resource_type"] == "model"
    }
    primary: dict[str, list[str]] = {}
    foreign: dict[str, list[str]] = {}
    not_null: set[tuple[str, str]] = set()
    relationships = []
    for test in tests:
        child, arguments = models.get(test["attached_node"]), test["test_metadata"]["kwargs"]
        column = arguments.get("column_name")
        match test["test_metadata"]["name"]:
            case "unique" if child:
                primary[child] = [column]
            case "unique_combination_of_columns" if child and test["config"].get("where") in ALL_ROWS:
                primary.setdefault(child, arguments["combination_of_columns"])
            case "not_null" if child:
                not_null.add((child, column))
            case "relationships" if child:
                parent = re.fullmatch(r"ref\('(\w+)'\)", arguments["to"])
                assert parent, arguments["to"]
                is_sure = test["config"]["severity"].upper() == "ERROR"
                relationships.append((parent[1], child, column, is_sure))
                foreign.setdefault(child, []).append(column)

    lines = ["erDiagram"]
    for table, child, column, is_sure in sorted(relationships):
        parent_end = "||" if is_sure and (child, column) in not_null else "|o"
        child_end = "o|" if primary.get(child) == [column] else "o{"
        lines.append(f"    {table} {parent_end}--{child_end} {child} : {column}")
    marts = {node["metadata"]["name"] for node in catalog["nodes"].values() if node["metadata"]["schema"] == "marts"}
    shown = marts | {name for relationship in relationships for name in relationship[:2]}
    columns = {node["metadata"]["name"]: node["columns"] for node in catalog["nodes"].values()}
    for name in sorted(shown):
        lines.append(f"    {name} {{")
        for column, details in columns[name].items():
            keys = [
                *(["PK"] if column in primary.get(name, ()) else []),
                *(["FK"] if column in foreign.get(name, ()) else []),
            ]
            if keys:
                kind = TYPES.get(details["type"], details["type"].lower())
                lines.append(f"        {kind} {column} {', '.join(keys)}")
        lines.append("    }")
    return "\n".join(lines) + "\n"
