"""The options that the commands share, and the workspace that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import ACCOUNT_VARIABLE, account_names, load_settings
from msgbubbles_sync.workspace import ROOT, Workspace

Database = Annotated[
    Path | None,
    typer.Option(
        "--database", help="The DuckDB file for readers. [default: warehouse.duckdb, or sandbox.duckdb, in the project]"
    ),
]
Account = Annotated[
    str | None,
    typer.Option(
        "--account", envvar=ACCOUNT_VARIABLE, show_envvar=False, metavar="NAME",
        help="Which of the accounts in [accounts.NAME] of the configuration.",
    ),
]  # fmt: skip
Destination = Annotated[
    Literal["duckdb", "postgres", "ducklake", "filesystem"],
    typer.Option("--destination", help="Where the tables are."),
]
Sandbox = Annotated[bool, typer.Option("--sandbox", help="Use a made-up account on this machine; no key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


def choose_workspace(
    database: Path | None, account: str | None, destination: str = "duckdb", *, sandbox: bool
) -> Workspace:
    """Return the workspace that a command is about: the whole warehouse, or that of a named account.

    Raises `UsageError`, of it `SeveralAccountsError` where none was named.
    """
    database = database or ROOT / f"{'sandbox' if sandbox else 'warehouse'}.{destination}"
    if sandbox:
        if account is not None:
            raise UsageError(f"--sandbox is an account by itself: leave out --account, and unset {ACCOUNT_VARIABLE}")
        return Workspace.from_path(database, destination)
    known = account_names()
    if account is None:
        if known:
            raise SeveralAccountsError(known)
        return Workspace.from_path(database, destination)
    if account not in known:
        there = f"there are {', '.join(known)}" if known else "there is none"
        raise UsageError(f"--account {account}: {there}, see [accounts.NAME] in dlt_config/config.toml")
    if not load_settings(account).api_key:
        raise UsageError(
            f"account {account} has no API key: set api_key of [accounts.{account}] in dlt_config/secrets.toml, or "
            f"ACCOUNTS__{account.upper()}__API_KEY"
        )
    workspace = Workspace.from_path(database, destination, account)
    workspace.refuse_unnamed_account()
    return workspace


class SeveralAccountsError(UsageError):
    """A command is about one account, and there are several."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"say of which account: --account {' or '.join(names)}")
        self.names = names
