"""Where a warehouse keeps its files.

`warehouse.duckdb` is what readers open. The job's own files are beside it, in `.msgbubbles/warehouse/`: the database
it works on, dlt's and dbt's working folders, the lock, and what is still to be done. Of several accounts each has all
of this for itself, as `warehouse_north.duckdb`; `warehouse.duckdb` then shows all of them.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError
from .files import follow_links, move_damaged

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = "msgbubbles"
DATASET = "msgbubbles"
# Whose rows a warehouse holds: a file of the job, and a copy of it in the tables.
CLAIM, CLAIM_TABLE = "account.json", "_account"
# Characters that mean something in the queries that dlt makes of a path, and bytes that are no UTF-8.
UNUSABLE = re.compile(r"""['"%*?\[\]{}\x00-\x1f\ud800-\udfff]""")
SCHEMAS = ("msgbubbles", "msgbubbles_staging", "staging", "marts")


@dataclass(frozen=True)
class Workspace:
    """The files of one warehouse, or of one of its accounts. `database` is the published one; with another
    `destination` than a DuckDB file it only says where the job's own files are."""

    database: Path
    destination: str = "duckdb"
    account: str | None = None

    @classmethod
    def from_path(cls, database: Path, destination: str = "duckdb", account: str | None = None) -> Workspace:
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
        file = follow_links(database)[-1]
        if file.is_symlink() or not file.parent.is_dir() or (file.exists() and not file.is_file()):
            raise UsageError(f"--database: {database} leads to {file}, which must be a file in a folder that exists")
        return cls(database, destination, account)

    @property
    def file(self) -> Path:
        """The published file itself, where `database` is a symbolic link to it."""
        return follow_links(self.database)[-1]

    @property
    def combined(self) -> Path:
        """The database that shows all accounts."""
        return self.database.with_name(f"{self.database.stem.removesuffix(f'_{self.account}')}{self.database.suffix}")

    def check_named(self) -> None:
        """Raises `UsageError` where what is to show all accounts is one that has no name, and says how to give it
        this one's."""
        whole = Workspace.from_path(self.combined, self.destination)
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
                move_damaged(folder)
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
