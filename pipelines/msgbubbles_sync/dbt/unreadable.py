"""Find files of the dbt project that dbt cannot read, and build the marts without them."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.files import read_json, read_modified_at_ns, remove, write_privately
from msgbubbles_sync.workspace import Workspace

from .project import PROJECT, READ_BY_DBT, copy_project, find_last_project

# How dbt names a file that it cannot read, and a line of it.
NAMED_FILE = re.compile(
    rf"(?P<path>(?:{'|'.join(READ_BY_DBT)})/[^\s()]+\.\w+|(?:packages|dependencies|selectors)\.yml)"
    r"|Error reading \w+: (?P<in_models>\S+)"
)
NAMED_IN_PARTS = re.compile(r"FilePath\(searched_path='(\w+)', relative_path='([^']+)'[^)]*\)")
NAMED_LINE = re.compile(r"\bline (\d+)")
PROJECT_FILE = re.compile(r"dbt_project\.yml|profiles\.yml")
# The models that need each other. The one that was changed last is left out.
IN_CYCLE = re.compile(r"(?:Found a cycle:|-->) model\.\w+\.(\w+)")
SAME_NAME = re.compile(r"found two \w+ with the (?:name|database representation)")
# The message with which `macros/schemas.sql` refuses a model.
REPLACES_LOADED_TABLES = re.compile(r"has the loaded tables: choose another\s+> in \w+ \w+ \((\S+)\)")
# dbt names one file at a time, and takes a second for each.
MAX_FILES = 10
# Macros that come with this project: its models need them, and some replace macros of dbt, as that which names schemas.
MACROS = {
    f"macros/{name}.sql" for name in (
        "bookkeeping", "business_hours", "comments", "dialects", "relations", "schemas", "touched_keys", "views",
    )
}  # fmt: skip
# Files that the marts are built from, or that describe them.
NEEDED = ("dbt_project.yml", "profiles.yml", "models/**/*.sql", "models/**/_*.yml", "models/columns.md", *MACROS)
LEFT_OUT = """dbt cannot read {files}: the marts are built without it, and one that it defines stays as it was. Correct
it as {details} says, or move it out of the project"""
FELL_BACK = """the marts cannot be built from {files}: they are built from the project as it was before. Correct it as
{details} says"""
REFUSED = """the marts could not be built: dbt cannot read {files}. Correct it as {details} says, or move it out of
the project; readers keep all marts as they were until then"""


@dataclass(frozen=True)
class UnreadableFile:
    """A file of the project, by its path in there.

    Attributes:
        line: Null if dbt does not name it.
        is_optional: Whether it can be left out: dbt names no other file, and nothing that is built needs it.
        like: The file that has its name; null if that is not what is wrong.
    """

    path: str
    line: str | None = None
    is_optional: bool = True
    like: str | None = None

    def __str__(self) -> str:
        like = f" (it has the name of {PROJECT / self.like})" if self.like else ""
        return f"{PROJECT / self.path}{f', line {self.line}' if self.line else ''}{like}"


@dataclass(frozen=True)
class UnreadableFiles:
    """The files that dbt cannot read of a project with the key `key`, and what it says about them."""

    key: str = ""
    files: tuple[UnreadableFile, ...] = ()
    messages: tuple[str, ...] = ()

    @property
    def marts(self) -> list[str]:
        """The models that are left out: these files are them, and no other file is."""
        if self.is_needed:  # they are built from the project as it was before
            return []
        paths = [Path(file.path) for file in self.files if not file.like]
        return sorted({path.stem for path in paths if path.parts[:1] == ("models",) and path.suffix == ".sql"})

    @property
    def is_needed(self) -> bool:
        """Whether the marts cannot be built without these files."""
        return len(self.files) > MAX_FILES or not all(file.is_optional for file in self.files)

    def add(self, file: UnreadableFile, message: str) -> UnreadableFiles:
        return replace(self, files=(*self.files, file), messages=(*self.messages, message))

    def describe(self, workspace: Workspace, text: str = "") -> str:
        """Return which files they are, and what that means; empty without any."""
        if not self.files:
            return ""
        text = text or (FELL_BACK if self.is_needed else LEFT_OUT)
        return text.format(files=" and ".join(map(str, self.files)), details=_get_details_path(workspace))

    def refuse(self, workspace: Workspace) -> None:
        """Raise `TransformError` if there are such files."""
        if self.files:
            raise TransformError(self.describe(workspace, REFUSED))

    def choose_project(self, workspace: Workspace) -> Path:
        """Return a copy of the project: without these files, or as it was before if they are needed.

        Raises `TransformError` if no project ever worked.
        """
        if not self.is_needed:
            return self.copy_project(workspace)
        last = find_last_project(workspace)
        if last is None:
            raise TransformError(self.describe(workspace, REFUSED))
        return last

    def store(self, workspace: Workspace) -> None:
        with suppress(OSError):  # a full or read-only disk, which the run reports as well
            write_privately(_get_details_path(workspace), "\n\n".join(self.messages) + "\n")
            write_privately(_get_path(workspace), json.dumps(asdict(self)))

    def copy_project(self, workspace: Workspace) -> Path:
        """Copy the project without these files, unless it has been. Returns the folder."""
        copy = workspace.dbt_folder / "project"
        mark = copy / "target" / "left_out"
        content = json.dumps([self.key, [file.path for file in self.files]])
        if mark.is_file() and mark.read_text(errors="replace") == content:
            return copy
        remove(copy)
        copy_project(copy, [PROJECT / file.path for file in self.files])
        mark.parent.mkdir()
        write_privately(mark, content)
        return copy


def load_unreadable_files(workspace: Workspace, key: str) -> UnreadableFiles:
    """Load the files that dbt could not read when it read the project with this key."""
    unreadable = UnreadableFiles(key)
    with suppress(TypeError, KeyError):
        stored = read_json(_get_path(workspace))
        if stored["key"] == key:
            files = tuple(UnreadableFile(**file) for file in stored["files"])
            unreadable = UnreadableFiles(key, files, tuple(stored["messages"]))
    return unreadable


def find_unreadable_file(message: str, project: Path = PROJECT) -> UnreadableFile | None:
    """Find the file of the project that dbt cannot read, as its message says; null for other errors."""
    message = NAMED_IN_PARTS.sub(r"\1/\2", message)
    if in_cycle := IN_CYCLE.findall(message):
        models = [path for name in in_cycle for path in project.glob(f"models/**/{name}.sql")]
        return UnreadableFile(max(models, key=read_modified_at_ns).relative_to(project).as_posix()) if models else None
    if replaces := REPLACES_LOADED_TABLES.search(message):
        return UnreadableFile(replaces[1])
    file = NAMED_FILE.search(message)
    if file is None and (named := PROJECT_FILE.search(message)):
        line = NAMED_LINE.search(message)
        return UnreadableFile(named[0], line[1] if line else None, is_optional=False)
    if file is None:
        return _search_files(project)
    path, *others = {named["path"] or f"models/{named['in_models']}": None for named in NAMED_FILE.finditer(message)}
    if len(others) == 1 and SAME_NAME.search(message):
        other, path = sorted((path, *others), key=lambda name: read_modified_at_ns(project / name))
        return UnreadableFile(path, None, path not in MACROS, other)
    line = NAMED_LINE.search(message, file.end())
    return UnreadableFile(path, line[1] if line else None, not others and path not in MACROS)


def list_suspects(project: Path) -> list[UnreadableFile]:
    """List files that can be left out, for an error that names none. Those that were changed last come first."""
    needed = {path for pattern in NEEDED for path in project.glob(pattern)}
    folders = [path for name in READ_BY_DBT for path in (project / name).rglob("*.*")]
    paths = {*project.glob("*.yml"), *project.glob("dbt_packages"), *folders} - needed
    newest = sorted(paths, key=lambda path: (read_modified_at_ns(path), path), reverse=True)
    return [UnreadableFile(path.relative_to(project).as_posix()) for path in newest[:MAX_FILES]]


def _search_files(project: Path) -> UnreadableFile | None:
    """Find a file that cannot be read, or one with an error of syntax, for which dbt names no file."""
    import yaml
    from dbt_common.clients import jinja  # dbt takes seconds to import

    for path in sorted(project.glob("*.yml")):
        try:
            yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, OSError) as error:
            mark = getattr(error, "problem_mark", None)
            return UnreadableFile(path.name, str(mark.line + 1) if mark else None, path.name not in NEEDED)
    for folder in READ_BY_DBT:
        for path in sorted((project / folder).rglob("*.*")):
            if path.is_dir():
                continue
            name = path.relative_to(project).as_posix()
            try:
                text = path.read_text(encoding="utf-8")
                if path.suffix == ".sql" and folder == "macros":
                    jinja.get_environment(None).parse(text)
            except (UnicodeDecodeError, OSError):
                return UnreadableFile(name, is_optional=name not in MACROS)
            except jinja.jinja2.TemplateSyntaxError as error:
                return UnreadableFile(name, str(error.lineno), name not in MACROS)
    return None


def _get_path(workspace: Workspace) -> Path:
    return workspace.dbt_folder / "unreadable.json"


def _get_details_path(workspace: Workspace) -> Path:
    return workspace.dbt_folder / "unreadable.txt"
