"""Where a warehouse keeps its files.

`warehouse.duckdb` is what readers open. The job's own files are beside it, in `.msgbubbles/warehouse/`: the database
it works on, dlt's and dbt's working folders, the lock, and what is still to be done. Of several accounts each has all
of this for itself, as `warehouse_north.duckdb`; `warehouse.duckdb` then shows all of them.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = "msgbubbles"
DATASET = "msgbubbles"
# Whose rows a warehouse holds: a file of the job, and a copy of it in the tables.
CLAIM, CLAIM_TABLE = "account.json", "_account"
# Characters that mean something in the queries that dlt makes of a path, and bytes that are no UTF-8.
UNUSABLE = re.compile(r"""['"%*?\[\]{}\x00-\x1f\ud800-\udfff]""")
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


# How many damaged files are kept for each name; older ones are removed.
MAX_SET_ASIDE = 3


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `<name>.damaged-<time>` in the same folder, and return the new path.

    The newest `MAX_SET_ASIDE` of each name are kept. Raises `OSError`.
    """
    kept = sorted(path.parent.glob(f"{glob.escape(path.name)}.damaged-*"))
    for old in kept[: max(len(kept) - MAX_SET_ASIDE + 1, 0)]:
        remove(old)
    new = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    path.rename(new)
    return new


def remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it. Raises `OSError`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def names_of(path: Path) -> list[Path]:
    """Return every path that a symbolic link goes through, the file itself last; only `path` where it is no link. The
    last of links that form a circle is a link."""
    names = [path]
    while path.is_symlink():
        # A relative link starts in the folder that the link really is in.
        target = Path(os.path.realpath(path.parent)) / path.readlink()
        path = Path(os.path.realpath(target.parent)) / target.name
        if path in names:
            break
        names.append(path)
    return names


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
        refused = UNUSABLE.search(str(database))
        if refused:
            raise UsageError(
                f"--database: the path {str(database)!r} contains {refused[0]!r}, and DuckDB and dlt cannot load files "
                "from such a folder; rename it, or choose another"
            )
        if database.is_dir() or not database.parent.is_dir():
            raise UsageError(f"--database: {database} must be a file in a folder that exists")
        if account is not None:
            database = database.with_name(f"{database.stem}_{account}{database.suffix}")
        file = names_of(database)[-1]
        if file.is_symlink() or not file.parent.is_dir() or (file.exists() and not file.is_file()):
            raise UsageError(f"--database: {database} leads to {file}, which must be a file in a folder that exists")
        return cls(database, destination, account)

    @property
    def file(self) -> Path:
        """The published file itself, where `database` is a symbolic link to it."""
        return names_of(self.database)[-1]

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

    def damaged(self) -> list[Path]:
        """Return the damaged files and folders that were moved aside."""
        return [path for folder in (self.folder, self.folder / "dlt") for path in folder.glob("*.damaged-*")]

    def make_folders(self) -> None:
        for folder in (self.folder.parent, self.folder, self.folder / "dlt", self.folder / "dbt"):
            if folder.exists() and not folder.is_dir():
                set_aside(folder)
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
