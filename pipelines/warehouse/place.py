"""Where a warehouse keeps its files.

`warehouse.duckdb` is what readers open. The job's own files are beside it, in `.msgbubbles/warehouse/`: the database
it works on, dlt's and dbt's working folders, the lock, and what is still to be done. Of several accounts each has all
of this for itself, as `warehouse_north.duckdb`; `warehouse.duckdb` then shows all of them.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = "msgbubbles"
DATASET = "msgbubbles"
# Whose rows a warehouse holds.
CLAIM = "account.json"
SCHEMAS = ("msgbubbles", "msgbubbles_staging", "staging", "marts")


class UsageError(Exception):
    """What was asked for cannot be done as it was asked; the message says what to ask instead."""


def written_privately(path: Path, content: str | bytes) -> Path:
    """Replace a small file that only its owner reads, all or nothing: what was there before stays whole where the disk
    refuses. A file that holds the content already is not written. Returns its path; raises `OSError`."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a device or a pipe, which cannot be replaced
        return path
    with suppress(OSError):
        if path.read_bytes() == data:
            return path
    target = path.resolve()  # behind a link, the link stays
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    sync_to_disk(target.parent)
    return path


def sync_to_disk(path: Path) -> None:
    """Make a file durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share_as(folder: Path) -> None:
    """Have whatever is made from now on be for those whom this folder is for."""
    os.umask(0o777 & ~folder.stat().st_mode)


@dataclass(frozen=True)
class Place:
    """The files of one warehouse, or of one of its accounts. `database` is the published one; with another
    `destination` than a DuckDB file it only says where the job's own files are."""

    database: Path
    destination: str = "duckdb"
    account: str | None = None

    @classmethod
    def of(cls, database: Path, destination: str = "duckdb", account: str | None = None) -> Place:
        """Raises `UsageError` when the database cannot be there."""
        database = database.expanduser().absolute()
        if database.stem in SCHEMAS:
            raise UsageError(
                f"--database: no file may be called {database.name}, because {database.stem} is also a schema in it, "
                "and DuckDB could not tell which of the two a query means; choose another name"
            )
        if database.is_dir() or not database.parent.is_dir():
            raise UsageError(f"--database: {database} must be a file in a folder that exists")
        if account is not None:
            database = database.with_name(f"{database.stem}_{account}{database.suffix}")
        return cls(database, destination, account)

    @property
    def combined(self) -> Path:
        """The database that shows all accounts."""
        return self.database.with_name(f"{self.database.stem.removesuffix(f'_{self.account}')}{self.database.suffix}")

    def check_named(self) -> None:
        """Raises `UsageError` where what is to show all accounts is one that has no name, and says how to give it
        this one's."""
        whole = Place.of(self.combined, self.destination)
        if self.account is None or not (whole.folder / CLAIM).exists():
            return
        moves = [f"mv {whole.folder} {self.folder}", f"rm {self.folder / CLAIM}"]
        if self.destination == "duckdb":
            moves = [f"mv {whole.database} {self.database}", *moves]
        raise UsageError(
            f"{whole.database.name} holds one account, which has no name. If it is {self.account}, let it go on under "
            "that name:\n\n  " + "\n  ".join(moves) + "\n\nOtherwise choose another --database for the accounts"
        )

    @property
    def folder(self) -> Path:
        name = self.database.stem if self.destination == "duckdb" else f"{self.database.stem}.{self.destination}"
        return self.database.parent / ".msgbubbles" / name

    @property
    def prefix(self) -> str:
        """What an account's schemas begin with, where several are in one database."""
        return "" if self.account is None else f"{self.account}_"

    def forget_loads(self) -> None:
        """Have everything read once more: what dlt remembers speaks of tables that are lost, or are elsewhere."""
        shutil.rmtree(self.folder / "dlt" / PIPELINE, ignore_errors=True)

    @property
    def work(self) -> Path:
        """The database that the job works on. It has the published one's name: DuckDB calls a database by it."""
        return self.folder / self.database.name

    def make_folders(self) -> None:
        for folder in (self.folder.parent, self.folder, self.folder / "dlt", self.folder / "dbt"):
            folder.mkdir(mode=0o700, exist_ok=True)

    def configure_dlt(self) -> None:
        """Point dlt at this project's configuration and this warehouse's working folder: before dlt is imported."""
        os.environ.setdefault("DLT_PROJECT_DIR", str(ROOT))
        os.environ.setdefault("DLT_CONFIG_FOLDER", "dlt_config")  # relative, or dlt keeps its state in there
        os.environ["DLT_DATA_DIR"] = str(self.folder / "dlt")
        os.environ["DLT_LOCAL_DIR"] = str(self.folder / "dlt")

    # What is still to be done outlives a job that is killed.

    def is_pending(self, step: str) -> bool:
        return (self.folder / f"{step}.pending").exists()

    def set_pending(self, *steps: str) -> None:
        for step in steps:
            (self.folder / f"{step}.pending").touch()

    def set_done(self, step: str) -> None:
        (self.folder / f"{step}.pending").unlink(missing_ok=True)

    def claim_for(self, account: str) -> None:
        """Refuse to mix a made-up account with a real one, or one of several with another."""
        origin = self.folder / CLAIM
        ours = {"account": account}
        if self.account is not None:
            ours |= {"name": self.account, "of": self.combined.name}
        try:
            known = json.loads(origin.read_text()) if origin.exists() else ours
            whose = _described(known)
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{origin} is damaged; remove it, if {self.database.name} is for {_described(ours)}"
            ) from None
        if known != ours:
            raise UsageError(
                f"{self.database.name} holds the rows of {whose}; choose another --database for {_described(ours)}"
            )
        written_privately(origin, json.dumps(ours))

    def files_of_accounts(self) -> dict[str, Path]:
        """The published files of the accounts that share this warehouse, this one among them, by name. They go by what
        is there: a job may be configured for one account only."""
        found = {} if self.account is None else {self.account: self.database}
        for origin in (self.database.parent / ".msgbubbles").glob(f"*/{CLAIM}"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one is told of by its own job
                known = json.loads(origin.read_text())
                if known["of"] == self.combined.name:
                    found[known["name"]] = Place.of(self.combined, self.destination, known["name"]).database
        return {account: file for account, file in sorted(found.items()) if file.exists()}


def _described(claim: Any) -> str:
    return f"account {claim['name']} of {claim['of']}" if "name" in claim else str(claim["account"])
