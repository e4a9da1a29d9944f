"""Read the questions of transforms/README.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[2] / "transforms" / "README.md"


@dataclass(frozen=True)
class Question:
    title: str
    query: str
    shown: list[str]
    """The lines of the printed result, with its column names first; empty if none is printed."""


def questions() -> list[Question]:
    section = README.read_text().split("\n## Questions you can answer\n")[1].split("\n## ")[0]
    return [_question(part) for part in section.split("\n### ")[1:]]


def _question(part: str) -> Question:
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL))
    return Question(part.split("\n")[0], blocks["sql"], blocks.get("text", "").splitlines())
