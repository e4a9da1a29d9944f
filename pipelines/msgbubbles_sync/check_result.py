"""The result of one check, as `check` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckResult:
    """`state` is ok, info (how this API behaves), or failed, and then `fix` says what to do."""

    name: str
    state: Literal["ok", "info", "failed"]
    what: str
    fix: str = ""
