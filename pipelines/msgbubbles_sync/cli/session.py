"""Run a command in its workspace. Imports DuckDB, so `main` imports this module only to run a command."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from msgbubbles.errors import ConfigurationError
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.outcome import REFUSED, explain_end
from msgbubbles_sync.settings import list_account_names, load_settings
from msgbubbles_sync.workspace import ACCOUNT_VARIABLE, ROOT, Workspace

from .accounts import run_each
from .console import Reporter
from .main import Options, Script, Session


def run_command(script: Script, body: Callable[[Session], int], reporter: Reporter, options: Options) -> int:
    """Run a command, report what ended it early, and return its exit status."""
    context = None
    try:
        try:
            workspace = choose_workspace(options)
        except SeveralAccountsError as several:
            if not options.for_each:
                raise
            return run_each(several.names, quiet=reporter.quiet, as_json=reporter.as_json)
        context = Context(workspace, load_settings(workspace.account), reporter)
        if options.uses_dlt:
            workspace.configure_dlt()  # before the destination reads its address
        if options.needs_warehouse and not os.path.lexists(workspace.folder) and not context.destination.exists():
            raise UsageError(
                f"{workspace.database} has no warehouse. Run the sync first, or pass the --database that it uses."
            )
        if options.uses_dlt:
            try:
                workspace.make_folders()
                workspace.leave_deleted_folder()
            except OSError as error:
                if not options.only_reads or error.errno not in REFUSED:
                    raise
                if not os.access(workspace.folder, os.R_OK | os.X_OK):  # otherwise nothing is missing in the output
                    reporter.fail(explain_end(error, context).message)
        if options.needs_version:
            check_version(context.destination)
        return body(Session(context, reporter, options.sandbox))
    except (Exception, KeyboardInterrupt) as error:
        outcome = explain_end(error, context)
        is_interrupt = isinstance(error, KeyboardInterrupt)
        reporter.fail(script.stopped if is_interrupt and script.stopped else outcome.message)
        return outcome.exit_status


def choose_workspace(options: Options) -> Workspace:
    """Return the workspace of a command: the whole warehouse, or that of a named account.

    Raises `UsageError`, or `SeveralAccountsError` if accounts are configured and none is named.
    """
    account, destination = options.account, options.destination
    database = options.database or ROOT / f"{'sandbox' if options.sandbox else 'warehouse'}.{destination}"
    if options.sandbox:
        if account is not None:
            raise UsageError(f"--sandbox has its own account. Omit --account, and unset {ACCOUNT_VARIABLE}.")
        return Workspace.from_path(database, destination)
    configured = list_account_names()
    if account is None:
        if configured:
            raise SeveralAccountsError(configured)
        return Workspace.from_path(database, destination)
    if account not in configured:
        names = f"the configured accounts are {', '.join(configured)}" if configured else "no account is configured"
        fix = f"Choose one of them, or configure [accounts.{account}]" if configured else "Omit --account"
        raise UsageError(f"--account {account}: {names}. {fix}; see [accounts.NAME] in dlt_config/config.toml.")
    settings = load_settings(account)
    if not settings.api_key:
        raise UsageError(
            f"account {account} has no API key. Set api_key of [accounts.{account}] in dlt_config/secrets.toml, or "
            f"ACCOUNTS__{account.upper()}__API_KEY."
        )
    key = _find_key(account)
    for other in configured:
        if other != account and _find_key(other) == key:
            raise UsageError(
                f"accounts {account} and {other} have the same API key, so each would hold the rows of the other. Set "
                f"api_key of [accounts.{account}] or [accounts.{other}] to its own, or remove one of the sections."
            )
    workspace = Workspace.from_path(database, destination, account)
    workspace.refuse_unnamed_account()
    return workspace


def _find_key(account: str) -> tuple[str, str] | None:
    """Return an account's API key and address; null if its configuration is invalid, which ends only its own runs."""
    with suppress(ConfigurationError):
        settings = load_settings(account)
        return settings.api_key, settings.source.base_url
    return None


class SeveralAccountsError(UsageError):
    """A command works on one account, and several are configured."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"several accounts are configured. Choose one: --account {' or '.join(names)}")
        self.names = names
