"""Load the list of handles that belong to one contact: the CSV file of `[transforms] contact_aliases`.

Columns: `handle`, and `contact`, which may be any label. Other columns are ignored.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from msgbubbles.handles import fold_handle, parse_handle
from msgbubbles.policy import PSEUDONYM
from msgbubbles.redact import Redactor

from .context import Context
from .csv_rows import read_csv
from .destinations import Destination
from .destinations.load import load_rows
from .errors import InputFileError
from .policy.applied import read_own_numbers
from .sql import fetch_rows
from .tables import CONTACT_ALIASES
from .workspace import configuration_folder

PIPELINE = "msgbubbles_contacts"
COLUMNS = ("handle", "contact")
# A file that exists while handles have contacts in the warehouse: most runs need not look.
LOADED = "contact_aliases.loaded"
# How many invalid rows a message names.
MAX_FAULTS = 10


def load_contact_aliases(context: Context) -> None:
    """Load what has changed in the list since the last run; handles that are no longer in it lose their contact.

    If there is anything, the marts and publishing are marked as pending. The caller holds the lock `job`. May be killed
    and repeated. Raises `InputFileError` for an invalid list, and for invalid rows once the others are loaded. With
    invalid rows, no handle loses its contact: it may be the one of such a row.
    """
    workspace, destination = context.workspace, context.destination
    file, marker = context.settings.transforms.contact_aliases, workspace.folder / LOADED
    if not file and not marker.exists():
        return
    redactor = context.redactor
    aliases, faults = read_aliases(configuration_folder().parent / Path(file).expanduser()) if file else ({}, [])
    for number in read_own_numbers(destination):
        aliases.pop(fold_handle(number), None)
    aliases, stored = _redact(aliases, redactor), _read_stored(destination)
    rows = [
        {"handle": handle, "contact": contact, "_fetched_at": datetime.now(UTC)}
        for handle, contact in ((stored if faults else dict.fromkeys(stored)) | aliases).items()
        if handle not in stored or stored[handle] != contact
    ]
    if rows:
        redactor.save_vault()
        workspace.set_pending("transform", "publish")
        marker.touch()  # before a kill may leave rows of a list that is then removed
        load_rows(destination, PIPELINE, [(CONTACT_ALIASES, rows)])
    if aliases or faults:
        marker.touch()
    else:
        marker.unlink(missing_ok=True)
    if faults:
        more = f"\n... and {len(faults) - MAX_FAULTS:,} more" if len(faults) > MAX_FAULTS else ""
        raise InputFileError("\n".join(faults[:MAX_FAULTS]) + more)


def read_aliases(path: Path) -> tuple[dict[str, str], list[str]]:
    """Read the contact of each folded handle. Returns what is wrong with other rows as well, with file and line.

    Raises `InputFileError` if the file as a whole cannot be read. No message quotes a handle.
    """
    if path.exists() and not path.is_file():  # reading a pipe may never end
        raise InputFileError(f"{path} is not a file. Name a CSV file in contact_aliases.")
    aliases: dict[str, str] = {}
    lines: dict[str, int] = {}
    faults: list[str] = []
    ambiguous = set[str]()
    for line, row in read_csv(path, COLUMNS, required=COLUMNS, refuse=faults.append):
        written, contact = row["handle"], row.get("contact", "").strip()
        handle = fold_handle(written)
        if parse_handle(written) is None and not PSEUDONYM.fullmatch(handle):
            faults.append(
                f"{path}:{line}: the handle is not a valid phone number or e-mail address. "
                "Use E.164, for example +14155550100."
            )
        elif not contact:
            faults.append(f"{path}:{line}: the handle has no contact. Write a name or an id in that column.")
        elif aliases.setdefault(handle, contact) != contact:
            faults.append(
                f"{path}:{line}: the handle has another contact in line {lines[handle]}. Remove one of the lines."
            )
            ambiguous.add(handle)
        else:
            lines.setdefault(handle, line)
    return {handle: contact for handle, contact in aliases.items() if handle not in ambiguous}, faults


def _redact(aliases: dict[str, str], redactor: Redactor) -> dict[str, str]:
    """Apply the policy, as to the handles of chats, and leave out erased people."""
    return {
        fold_handle(redactor.handle(handle)): redactor.handle(contact)
        for handle, contact in aliases.items()
        if not (redactor.is_erased(handle) or redactor.is_erased(contact) or redactor.mentions_erased(contact))
    }


def _read_stored(destination: Destination) -> dict[str, str | None]:
    table = f"{destination.write_schema}.{CONTACT_ALIASES.name}"
    if destination.has_tables():
        with destination.open_writer() as connection:
            return dict(fetch_rows(connection, f"SELECT handle, contact FROM {table}"))  # noqa: S608
    return {}
