"""Remove old values from the files of a workspace, once no table has them. Readers see none of these files.

A file that cannot be read or changed fails alone, and every run tries again until it succeeds.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from msgbubbles.errors import MsgBubblesError
from msgbubbles.redact import Redactor
from msgbubbles_sync.context import Context
from msgbubbles_sync.files import remove, write_privately
from msgbubbles_sync.groups.ledger import LEDGER, Ledger
from msgbubbles_sync.groups.load import load_ledger
from msgbubbles_sync.policy.applied import build_redactor, open_vault
from msgbubbles_sync.run_log import FILE as RUN_LOG
from msgbubbles_sync.webhooks.load import dead_letter_folder

from .rewrite import load_spool

NOT_LOADED = """{paths} cannot be read, or a receiver does not release it, and it may hold events of the people
concerned: give the user of this job access, stop webhooks.py serve, or remove it"""
NOT_CHANGED = "{path} cannot be read or changed ({kind}): give the user of this job access, or move it away"


def purge_files(context: Context) -> tuple[Counter[str], list[str]]:
    """Remove everybody whose hash is in the privacy record, and what a stricter policy drops. May be repeated.

    Does nothing if tables have not changed since. Returns the counts of what was removed, and why files could not be
    changed.
    """
    workspace = context.workspace
    if not workspace.is_pending("privacy_files"):
        return Counter(), []
    redactor = build_redactor(workspace, context.settings)
    counts, failures = Counter[str](), []
    for purge in (_purge_spool, _remove_leftovers, _purge_dead_letters, _purge_run_log, _purge_vault, _purge_ledger):
        try:
            counts += purge(context, redactor)
        except MsgBubblesError as error:
            failures.append(str(error))
        except (OSError, sqlite3.Error) as error:
            path = getattr(error, "filename", None) or workspace.folder
            failures.append(NOT_CHANGED.format(path=path, kind=type(error).__name__))
    if not failures:
        workspace.set_done("privacy_files")
    return counts, failures


def _purge_spool(context: Context, _redactor: Redactor) -> Counter[str]:
    if waiting := load_spool(context):
        raise MsgBubblesError(NOT_LOADED.format(paths=", ".join(map(str, waiting))))
    return Counter()


def _remove_leftovers(context: Context, _redactor: Redactor) -> Counter[str]:
    """Remove error reports, which may quote rows, and what killed processes left."""
    workspace = context.workspace
    reports = (workspace.folder / "last_error.txt", workspace.dbt_folder / "last_error.txt")
    for path in (*reports, *workspace.folder.glob("*.copying"), *workspace.find_damaged()):
        remove(path)
    return Counter()


def _purge_dead_letters(context: Context, redactor: Redactor) -> Counter[str]:
    """Remove lines that mention an erased person, or all under a policy: they may name anybody."""
    for path in dead_letter_folder(context.workspace).glob("*.jsonl"):
        if redactor.policy.redacts:
            remove(path)
        else:
            _rewrite(path, lambda line: "" if redactor.mentions_erased(line) else line)
    return Counter()


def _purge_run_log(context: Context, redactor: Redactor) -> Counter[str]:
    path = context.workspace.folder / RUN_LOG
    if path.exists():
        _rewrite(path, redactor.replace_erased_in_json)
    return Counter()


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change each line of a file, and remove lines that become empty."""
    before = path.read_bytes().decode("utf-8", "replace").split("\n")
    after = [*map(change, before)]
    if after != before:
        write_privately(path, "".join(f"{line}\n" for line in after if line))


def _purge_vault(context: Context, redactor: Redactor) -> Counter[str]:
    vault = open_vault(context.settings)
    return Counter() if vault is None else Counter({"the vault": vault.remove(redactor.is_erased)})


def _purge_ledger(context: Context, redactor: Redactor) -> Counter[str]:
    """Remove erased people from the ledger; after a change of the policy, load it and remove it as a whole."""
    workspace = context.workspace
    if workspace.is_pending("former_ledger"):
        load_ledger(context.destination, redactor)
        for path in workspace.folder.glob(f"{LEDGER}*"):
            remove(path)
        workspace.set_done("former_ledger")
    if not (workspace.folder / LEDGER).exists():
        return Counter()
    with Ledger.open(workspace.folder) as ledger:
        return Counter({"the ledger of groups": ledger.remove_people(redactor.is_erased, redactor.replace_erased)})
