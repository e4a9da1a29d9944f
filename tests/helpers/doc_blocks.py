"""The fenced blocks of a Markdown page.

An HTML comment on the line before a block says why it cannot run here: `<!-- not run: needs a server -->`. Such a block
is only parsed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
# What differs from run to run: numbers and times, ids, how far a bar or a frame reaches, and padding.
VARIES = (
    (re.compile(r"\b(?:wh|req)_\w+|\bgroup:\w+"), "ID"),
    (re.compile(r"[\d][\d,.:]*"), "N"),
    (re.compile(r"[─┬┼┴┌└├┐┘┤█▓▒░·]+(?: [█▓▒░·]+)*"), "-"),
    (re.compile(r"\b(?:second|minute|hour)s?(?= ago\b)|\bminutes\b"), "minute"),
    (re.compile(r"; newer than the last run: N rows?"), ""),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    body: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a console block, with the output that is printed under it."""

    text: str
    output: list[str]


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = list(FENCE.finditer(text))
    assert text.count("\n```") == 2 * len(found), f"{page.name}: a fence is not read"
    return [
        Block(page, text.count("\n", 0, match.start("language")) + 1, match["language"], match["body"], match["reason"])
        for match in found
    ]


def split_console(block: Block) -> Iterator[Command]:
    """Yield the commands of a console block: each begins with `$ ` and ends with its last quote."""
    lines = block.body.splitlines()
    while lines:
        first = lines.pop(0)
        assert first.startswith("$ "), f"{block}: {first!r} is no command"
        command = first.removeprefix("$ ")
        while not _is_whole(command):
            command += f"\n{lines.pop(0)}"
        output = []
        while lines and not lines[0].startswith("$ "):
            output.append(lines.pop(0))
        yield Command(command, output)


def _is_whole(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return not command.endswith("\\")


def mask(line: str, project: Path) -> str:
    """Replace what differs from run to run."""
    line = line.replace(str(project), "/path/to/project")
    for pattern, replacement in VARIES:
        line = pattern.sub(replacement, line)
    return line.strip()


def find_missing_line(documented: list[str], actual: str, project: Path) -> str | None:
    """Return the first documented line that a command did not print, in this order; `...` stands for any lines."""
    printed = iter([mask(line, project) for line in actual.splitlines()])
    for line in documented:
        if line.strip() and line != "..." and mask(line, project) not in printed:
            return line
    return None
