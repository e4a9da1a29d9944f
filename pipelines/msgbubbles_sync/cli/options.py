"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

# As in `settings`, which takes longer to import than help takes to print.
ACCOUNT_VARIABLE = "MSGBUBBLES_ACCOUNT"

Database = Annotated[
    Path | None,
    typer.Option(
        "--database", metavar="FILE", show_default=False,
        help="The DuckDB file for readers. [default: warehouse.duckdb, or sandbox.duckdb, in the project]",
    ),
]  # fmt: skip
Account = Annotated[
    str | None,
    typer.Option(
        "--account", envvar=ACCOUNT_VARIABLE, show_envvar=False, metavar="NAME",
        help="One of the accounts in [accounts.NAME] of the configuration.",
    ),
]  # fmt: skip
Destination = Annotated[
    Literal["duckdb", "postgres", "ducklake", "filesystem"],
    typer.Option(
        "--destination", metavar="NAME",
        help="Where the tables are: duckdb, postgres, ducklake or filesystem.",
    ),
]  # fmt: skip
Sandbox = Annotated[bool, typer.Option("--sandbox", help="Use a simulated account on this machine. Needs no API key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
