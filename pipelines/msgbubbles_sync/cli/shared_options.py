"""Add the options that commands share to a command."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .console import Reporter
from .main import Options, Script

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

# Each option with its default.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "database": (Database, None),
    "account": (Account, None),
    "destination": (Destination, "duckdb"),
    "sandbox": (Sandbox, False),
    "quiet": (Quiet, False),
    "as_json": (AsJson, False),
}


def with_shared_options(
    script: Script, *names: str, for_each: bool = False, uses_dlt: bool = True, needs_warehouse: bool = False
) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Turn a function of a `Session` into a command of a script.

    The command has the parameters of the function as options and arguments, and `--database`, `--account`, `--sandbox`
    and the named options. It exits with the status that the function returns.
    """

    def decorate(body: Callable[..., int]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            shared = {name: values.pop(name, default) for name, (_, default) in OPTIONS.items()}
            reporter = Reporter(quiet=shared.pop("quiet"), as_json=shared.pop("as_json"))
            options = Options(**shared, for_each=for_each, uses_dlt=uses_dlt, needs_warehouse=needs_warehouse)
            script.run(lambda session: body(session, **values), reporter, options)

        own = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in signature(body, eval_str=True).parameters.values()]
        common = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in OPTIONS.items()
            if name in ("database", "account", "sandbox", *names)
        ]
        run.__name__, run.__doc__, run.__annotations__ = body.__name__, body.__doc__, {}
        run.__signature__ = Signature([*own[1:], *common])  # type: ignore[attr-defined]
        return run

    return decorate
