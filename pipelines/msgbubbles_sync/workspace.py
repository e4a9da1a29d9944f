"""Find the files of a warehouse.

Readers open `warehouse.duckdb`. The job's own files are next to it, in `.msgbubbles/warehouse/`: the database that it
works on, dlt's and dbt's working folders, the lock, and the markers of pending work. Each of several accounts has all
of this, as `warehouse_north.duckdb`; `warehouse.duckdb` then shows all accounts.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .errors import UsageError
from .extras import CHECKOUT, IS_CHECKOUT
from .files import follow_links, move_damaged, restore_access, write_privately

# The project: the checkout, or the working directory if the package is installed.
ROOT = CHECKOUT if IS_CHECKOUT else Path.cwd()
ACCOUNT_VARIABLE = "MSGBUBBLES_ACCOUNT"
PIPELINE = "msgbubbles"
DATASET = "msgbubbles"
# dlt's folders of packages that are not loaded yet, in that of the pipeline.
PENDING_PACKAGES = ("normalize/extracted", "load/new", "load/normalized")
# The file that names the account whose rows a warehouse holds.
CLAIM_FILE = "account.json"
# How many steps of `migrations.py` a workspace (in a file) and a warehouse (in a table) have.
LAYOUT_VERSION, VERSION_FILE = 2, "version"
# Characters with a meaning in the queries that dlt builds from a path, and bytes that are not UTF-8.
UNUSABLE = re.compile(r"""['"%*?\[\]{}\x00-\x1f\ud800-\udfff]""")
# The same in the path of a DuckDB file. Its name is that of a database in the queries of dbt.
UNUSABLE_IN_DUCKDB = re.compile(r"""[%*?\x00-\x1f\ud800-\udfff]|['"](?=[^/]*$)""")
# Names may have 255 bytes, and paths 4,096, with what is appended for logs, copies, and the files of dlt and dbt.
MAX_NAME_BYTES, MAX_PATH_BYTES = 215, 3600
# The permissions that the job needs for its folders.
USABLE = os.R_OK | os.W_OK | os.X_OK
# Settings of dlt that the job relies on.
RELIED_ON = {
    "EXTRACT__NEXT_ITEM_MODE": "fifo",
    "NORMALIZE__PARQUET_NORMALIZER__ADD_DLT_LOAD_ID": "true",
    "LOAD__DELETE_COMPLETED_JOBS": "true",
    "LOAD__TRUNCATE_STAGING_DATASET": "true",
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    # dlt's log messages may quote rows; the job reports errors itself.
    "RUNTIME__LOG_LEVEL": "CRITICAL",
}
DestinationName = Literal["duckdb", "postgres", "ducklake", "filesystem"]
SCHEMAS = ("msgbubbles", "msgbubbles_staging", "staging", "marts")
# Pending work. Each step has a file in the workspace, which outlives a killed job.
Step = Literal[
    "restored",  # restore what lost or restored tables lack: see `job`
    "ledger",  # load all of the ledger again
    "policy",  # apply a stricter privacy policy to the tables
    "erase",  # erase people from the tables
    "privacy_files",  # remove from the files what one of these has removed from the tables
    "former_ledger",  # load the ledger, and remove it: it is from before a stricter policy
    "compact",  # rewrite the database without the texts that retention has removed
    "removal",  # remove rows: nothing is published until then
    "screen",  # find the rows that the destination refuses
    "repair",  # read what the loaded rows show to be missing
    "transform",  # build the marts
    "build",  # finish a build of the marts, of which some may be newer than others: readers keep those that they have
    "dropped_marts",  # build them, even in a run without: readers would get a file that lacks them
    "test_runs",  # test the tables of runs again
    "marts",  # copy the marts to where readers see them, on a server
    "publish",  # publish
    "lost_files",  # empty tables of a lake whose files are missing
    "damage",  # search all Parquet files for damaged ones
]

# What `Workspace.has_privacy_work` means.
PRIVACY_WORK = "an erasure or a change of the privacy policy was interrupted"


def configuration_folder() -> Path:
    """Return the folder of the configuration, which dlt reads as well."""
    return Path(os.environ.get("DLT_PROJECT_DIR", str(ROOT)), os.environ.get("DLT_CONFIG_FOLDER", "dlt_config"))


@dataclass(frozen=True)
class Workspace:
    """The files of a warehouse, or of one of its accounts.

    `database` is the published file; with another `destination` than `duckdb` it only places the job's own files.
    """

    database: Path
    destination: str = "duckdb"
    account: str | None = None

    @classmethod
    def from_path(cls, database: Path, destination: str = "duckdb", account: str | None = None) -> Workspace:
        """Build the workspace of a database. Raises `UsageError` for a path that cannot be used."""
        try:
            database = database.expanduser().absolute()
        except FileNotFoundError:
            raise UsageError(
                f"--database: the working directory was deleted, so {str(database)!r} leads nowhere. Change to another "
                "folder, or pass an absolute path"
            ) from None
        if database.stem in SCHEMAS:
            raise UsageError(
                f"--database: the file may not be called {database.name}, because the database has a schema "
                f"{database.stem}, and queries would be ambiguous; choose another name"
            )
        refused = (UNUSABLE_IN_DUCKDB if destination == "duckdb" else UNUSABLE).search(str(database))
        if refused:
            raise UsageError(
                f"--database: the path {str(database)!r} contains {refused[0]!r}, which DuckDB and dlt cannot handle; "
                "rename the folder or file, or choose another"
            )
        name = os.fsencode(f"{database.name}_{account or ''}")
        if len(name) > MAX_NAME_BYTES or len(os.fsencode(database)) > MAX_PATH_BYTES:
            raise UsageError(
                f"--database: the name may have {MAX_NAME_BYTES} bytes, with that of the account, and the path "
                f"{MAX_PATH_BYTES}, because the job appends to both; choose a shorter one"
            )
        if database.is_dir():
            example = database / "warehouse.duckdb"
            raise UsageError(
                f"--database: {database} is a folder; move it away, or name a file in it, such as {example}"
            )
        if not database.parent.is_dir():
            raise UsageError(f"--database: create the folder {database.parent} first, or choose another")
        if account is not None:
            database = database.with_name(f"{database.stem}_{account}{database.suffix}")
        file = follow_links(database)[-1]
        if file.is_symlink() or not file.parent.is_dir() or (file.exists() and not file.is_file()):
            raise UsageError(f"--database: {database} leads to {file}, which must be a file in a folder that exists")
        workspace = cls(database, destination, account)
        if file.exists() and not os.path.lexists(workspace.folder) and not _may_be_duckdb(file):
            raise UsageError(f"--database: {database} is not a DuckDB file; choose another name, or move it away")
        return workspace

    @property
    def file(self) -> Path:
        """The published file itself, where `database` is a symbolic link."""
        return follow_links(self.database)[-1]

    @property
    def combined(self) -> Path:
        """The database that shows the tables of all accounts."""
        return self.database.with_name(f"{self.database.stem.removesuffix(f'_{self.account}')}{self.database.suffix}")

    def refuse_unnamed_account(self) -> None:
        """Raise `UsageError` if the file that would show all accounts holds an unnamed account."""
        whole = Workspace.from_path(self.combined, self.destination)
        if self.account is None or not os.path.lexists(whole.folder / CLAIM_FILE):  # False in an unreadable folder
            return
        moves = [
            shlex.join(["mv", str(whole.folder), str(self.folder)]),
            shlex.join(["rm", str(self.folder / CLAIM_FILE)]),
        ]
        if self.destination == "duckdb":
            moves = [shlex.join(["mv", str(whole.database), str(self.database)]), *moves]
        raise UsageError(
            f"{whole.database.name} holds an account without a name. If it is {self.account}, rename it:\n\n  "
            + "\n  ".join(moves)
            + "\n\nOtherwise choose another --database for the accounts"
        )

    @property
    def folder(self) -> Path:
        """The folder of the job's own files."""
        return self._folder_for(self.destination)

    @property
    def dlt_folder(self) -> Path:
        """The working folder of dlt, with a folder for each pipeline."""
        return self.folder / "dlt"

    @property
    def dbt_folder(self) -> Path:
        """The folder of what is known of the last build of the marts."""
        return self.folder / "dbt"

    @property
    def other_folders(self) -> list[Path]:
        """The folders that this database name has for the other destinations."""
        return [self._folder_for(name) for name in get_args(DestinationName) if name != self.destination]

    def _folder_for(self, destination: str) -> Path:
        name = self.database.stem if destination == "duckdb" else f"{self.database.stem}.{destination}"
        return self.database.parent / ".msgbubbles" / name

    @property
    def prefix(self) -> str:
        """The prefix of an account's schemas, where several accounts are in one database."""
        return "" if self.account is None else f"{self.account}_"

    @property
    def has_pending_load(self) -> bool:
        """Whether dlt has packages that are not loaded yet."""
        folder = self.dlt_folder / PIPELINE
        return any(path for packages in PENDING_PACKAGES for path in folder.glob(f"{packages}/*"))

    def forget_loads(self) -> None:
        """Delete dlt's state, because its tables are lost, elsewhere or of another time.

        The next load continues from the state that the tables have. `job` restores what is not in the API.
        """
        loads = self.dlt_folder / PIPELINE
        if loads.exists():  # not before the first load
            self.set_pending("restored")
        shutil.rmtree(loads, ignore_errors=True)

    @property
    def work(self) -> Path:
        """The database that the job works on. It has the same name as the published one, because queries use it."""
        return self.folder / self.database.name

    def find_damaged(self) -> list[Path]:
        """Return the damaged files and folders that were renamed."""
        folders = (self.folder, self.dlt_folder, self.dbt_folder)
        return [path for folder in folders for path in folder.glob("*.damaged-*")]

    def make_folders(self) -> None:
        """Create the folders that are missing, and restore the access of the user of this process to those it owns."""
        restore_access(self.folder.parent)
        restorable = (self.dlt_folder, self.dbt_folder)
        for folder in (self.folder.parent, self.folder, *restorable):
            restore_access(folder)
            is_usable = os.access(folder, USABLE) or not os.path.lexists(folder)
            can_be_moved = folder in restorable and os.access(self.folder, os.W_OK)  # no read-only disk
            if (folder.exists() and not folder.is_dir()) or (can_be_moved and not is_usable):
                move_damaged(folder)
            folder.mkdir(mode=0o700, exist_ok=True)
        for path in (*self.folder.iterdir(), *self.dbt_folder.iterdir()):
            restore_access(path)
            is_usable = os.access(path, USABLE) if path.is_dir() else path.name not in ("logs", "target")
            if path.parent == self.dbt_folder and not is_usable:
                move_damaged(path)
            # A link to a database or to the spool may lead to a disk that is not mounted.
            is_ours = path.name != "webhooks" and path.suffix not in (self.work.suffix, ".sqlite")
            if is_ours and path.is_symlink() and not path.exists():
                move_damaged(path)
        if self._is_new:
            self.store_version(LAYOUT_VERSION)

    @property
    def _is_new(self) -> bool:
        """Whether nothing was written yet, perhaps by a run whose disk was full."""
        return not any(path.is_file() for path in self.folder.rglob("*"))

    @property
    def version(self) -> int:
        """The version of these files; 0 if a release without versions wrote them."""
        try:
            return int((self.folder / VERSION_FILE).read_text())
        except PermissionError:  # `restore` moves the file away
            return LAYOUT_VERSION
        except (OSError, ValueError):
            return LAYOUT_VERSION if self._is_new else 0

    def store_version(self, version: int) -> None:
        write_privately(self.folder / VERSION_FILE, f"{version}\n")

    def leave_deleted_folder(self) -> None:
        """Change to the folder of the job if the working directory was deleted: dlt and dbt ask for it."""
        try:
            os.getcwd()  # noqa: PTH109
        except FileNotFoundError:
            os.chdir(self.folder)

    def configure_dlt(self) -> None:
        """Point dlt at this project's configuration and this workspace. Call it before dlt is imported."""
        os.environ.setdefault("DLT_PROJECT_DIR", str(ROOT))
        os.environ.setdefault("DLT_CONFIG_FOLDER", "dlt_config")  # relative, or dlt keeps its state in there
        os.environ["DLT_DATA_DIR"] = str(self.dlt_folder)
        os.environ["DLT_LOCAL_DIR"] = str(self.dlt_folder)
        for name, value in RELIED_ON.items():
            os.environ.setdefault(name, value)

    def is_pending(self, *steps: Step) -> bool:
        """Return whether one of these is pending."""
        return any((self.folder / f"{step}.pending").exists() for step in steps)

    @property
    def has_privacy_work(self) -> bool:
        """Whether an erasure or a change of the policy was interrupted. The next run finishes it."""
        return self.is_pending("policy", "erase")

    def set_pending(self, *steps: Step) -> None:
        for step in steps:
            (self.folder / f"{step}.pending").touch()

    def set_done(self, *steps: Step) -> None:
        for step in steps:
            (self.folder / f"{step}.pending").unlink(missing_ok=True)


def _may_be_duckdb(file: Path) -> bool:
    """Return whether a file is empty or begins as DuckDB's do, or cannot be read."""
    with suppress(OSError), file.open("rb") as content:
        return content.read(12)[8:] in (b"", b"DUCK")
    return True
