"""Checks, and their results as `check` prints them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from msgbubbles.errors import Interrupted, LimitReached


@dataclass(frozen=True)
class CheckResult:
    """`state` is ok, info (how this API behaves), or failed, and then `fix` says what to do."""

    name: str
    state: Literal["ok", "info", "failed"]
    what: str
    fix: str = ""


# Its name, for the case that it raises an error, and a function that returns its results.
Check = tuple[str, Callable[[], CheckResult | Iterable[CheckResult] | None]]


def run_checks(checks: Iterable[Check], explain: Callable[[Exception], str]) -> Iterator[CheckResult]:
    """Run checks, and yield each result as soon as it is known. An error in one does not stop the others."""
    for name, run in checks:
        try:
            results = run() or ()
            yield from (results,) if isinstance(results, CheckResult) else results
        except (Interrupted, LimitReached):
            raise
        except Exception as error:
            yield CheckResult(name, "failed", explain(error), "fix this, and run check again")
