"""Find files of the dbt project that dbt cannot read, and build the marts without them."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.files import read_json, remove, write_privately
from msgbubbles_sync.workspace import Workspace

from .project import MADE_BY_DBT, PROJECT

# How dbt names a file that it cannot read, and a line of it.
NAMED_FILE = re.compile(r"(?P<path>(?:models|macros|tests)/[^\s()]+\.\w+)|Error reading \w+: (?P<in_models>\S+)")
NAMED_LINE = re.compile(r"\bline (\d+)")
# dbt names one file at a time, and takes a second for each.
MAX_FILES = 10
# Macros that come with this project: its models need them, and some replace macros of dbt, as that which names schemas.
MACROS = {
    f"macros/{name}.sql" for name in (
        "bookkeeping", "business_hours", "comments", "dialects", "relations", "schemas", "touched_keys", "views",
    )
}  # fmt: skip
LEFT_OUT = """dbt cannot read {files}: the marts are built without it, and one that it defines stays as it was. Correct
it as {details} says, or move it out of the project"""
REFUSED = """the marts could not be built: dbt cannot read {files}. Correct it as {details} says, or move it out of
the project; readers keep all marts as they were until then"""


@dataclass(frozen=True)
class UnreadableFile:
    """A file of the project, by its path in there.

    Attributes:
        line: Null if dbt does not name it.
        is_optional: Whether it can be left out: dbt names no other file, and nothing that is built needs it.
    """

    path: str
    line: str | None = None
    is_optional: bool = True

    def __str__(self) -> str:
        return f"{PROJECT / self.path}, line {self.line}" if self.line else str(PROJECT / self.path)


@dataclass(frozen=True)
class UnreadableFiles:
    """The files that dbt cannot read of a project with the key `key`, and what it says about them."""

    key: str = ""
    files: tuple[UnreadableFile, ...] = ()
    messages: tuple[str, ...] = ()

    @property
    def marts(self) -> list[str]:
        """The models that these files are."""
        paths = [Path(file.path) for file in self.files]
        return sorted({path.stem for path in paths if path.parts[0] == "models" and path.suffix == ".sql"})

    def add(self, file: UnreadableFile, message: str) -> UnreadableFiles:
        return replace(self, files=(*self.files, file), messages=(*self.messages, message))

    def describe(self, workspace: Workspace, text: str = LEFT_OUT) -> str:
        """Return which files they are, and what that means; empty without any."""
        if not self.files:
            return ""
        return text.format(files=" and ".join(map(str, self.files)), details=_details_file(workspace))

    def refuse(self, workspace: Workspace, *, is_needed: bool = False) -> None:
        """Raise `TransformError` if the marts cannot be built without these files, as with `is_needed`."""
        is_needed = is_needed or len(self.files) > MAX_FILES or not all(file.is_optional for file in self.files)
        if self.files and is_needed:
            raise TransformError(self.describe(workspace, REFUSED))

    def store(self, workspace: Workspace) -> None:
        with suppress(OSError):  # a full or read-only disk, which the run reports as well
            write_privately(_details_file(workspace), "\n\n".join(self.messages) + "\n")
            write_privately(_file(workspace), json.dumps(asdict(self)))

    def copy_project(self, workspace: Workspace) -> Path:
        """Copy the project without these files, unless it has been. Returns the folder."""
        copy = workspace.dbt_folder / "project"
        mark = copy / "target" / "left_out"
        content = json.dumps([self.key, [file.path for file in self.files]])
        if mark.is_file() and mark.read_text() == content:
            return copy
        remove(copy)
        shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(*MADE_BY_DBT))
        mark.parent.mkdir()
        for file in self.files:
            (copy / file.path).unlink()
        write_privately(mark, content)
        return copy


def load_unreadable_files(workspace: Workspace, key: str) -> UnreadableFiles:
    """Load the files that dbt could not read when it read the project with this key.

    Raises `TransformError` if it cannot be read without them either: dbt need not start for that.
    """
    unreadable = UnreadableFiles(key)
    with suppress(TypeError, KeyError):
        stored = read_json(_file(workspace))
        if stored["key"] == key:
            files = tuple(UnreadableFile(**file) for file in stored["files"])
            unreadable = UnreadableFiles(key, files, tuple(stored["messages"]))
    unreadable.refuse(workspace)
    return unreadable


def find_unreadable_file(message: str, project: Path = PROJECT) -> UnreadableFile | None:
    """Find the file of the project that dbt cannot read, as its message says; null for other errors."""
    file = NAMED_FILE.search(message)
    if file is None:
        return _search_files(project)
    path, *others = {named["path"] or f"models/{named['in_models']}": None for named in NAMED_FILE.finditer(message)}
    line = NAMED_LINE.search(message, file.end())
    return UnreadableFile(path, line[1] if line else None, not others and path not in MACROS)


def _search_files(project: Path) -> UnreadableFile | None:
    """Find a file that is not UTF-8, or a macro with an error of syntax, in which case dbt names no file."""
    from dbt_common.clients import jinja  # dbt takes seconds to import

    for folder in ("macros", "models", "tests"):
        for path in sorted((project / folder).rglob("*.*")):
            name = path.relative_to(project).as_posix()
            try:
                text = path.read_text(encoding="utf-8")
                if path.suffix == ".sql" and folder == "macros":
                    jinja.get_environment(None).parse(text)
            except UnicodeDecodeError:
                return UnreadableFile(name, is_optional=name not in MACROS)
            except jinja.jinja2.TemplateSyntaxError as error:
                return UnreadableFile(name, str(error.lineno), name not in MACROS)
    return None


def _file(workspace: Workspace) -> Path:
    return workspace.dbt_folder / "unreadable.json"


def _details_file(workspace: Workspace) -> Path:
    return workspace.dbt_folder / "unreadable.txt"
