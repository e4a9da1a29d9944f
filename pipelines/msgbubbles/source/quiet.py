"""Find out from the newest page of each list whether there is anything to load.

Most runs find nothing, and dlt is most of what such a run costs. So the readers first read without it, from the state
of the last load. As soon as they want to load a row, to request anything else or to query a stored row, this ends, and
the run begins with dlt. It gets the answers, so no request is made twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from msgbubbles.client import Client
from msgbubbles.errors import MsgBubblesError
from msgbubbles.redact import Redactor

from .buffer import RowBuffer
from .coverage import Coverage
from .fetch import InFlight
from .readers import NEWEST_PAGES, READERS, AnsweredClient, connect
from .run import Run
from .stored import Warehouse
from .streams import read_stream

# The parts of the state of the messages that are states of lists.
LISTS = ("by_feed", "by_thread")


class NotQuietError(Exception):
    """There may be something to load."""


def is_quiet(api_key: str, redactor: Redactor, run: Run, resources: Mapping[str, Any]) -> bool:
    """Read the newest pages, and return whether all else is as in `resources`, dlt's state after the last load.

    Then `run` has the progress, and the state need not be stored: it would only say when the newest pages were read.
    Otherwise `run.newest_pages` has the answers.
    """
    if redactor.erased:  # whose messages of new chats are depends on requests of the client
        return False
    answers = run.newest_pages
    quiet = replace(
        run,
        streams={},
        changes={},
        failed_now=set(),
        newest_pages={},
        in_flight=InFlight,
        on_rows=_refuse,
        warehouse=cast(Warehouse, _Nothing()),
    )
    try:
        with connect(api_key, redactor, quiet) as client:
            for read, tables in READERS:
                state = copy.deepcopy(resources.get(tables[0], {}))
                before = _describe(state)
                buffer = _NoRows(tables, None, quiet.changes)
                for _ in read_stream(read, cast(Client, _NewestPagesClient(client, answers)), buffer, state, quiet):
                    _refuse()
                if _describe(state) != before:
                    return False
    except NotQuietError:
        return False
    if quiet.is_stopped or quiet.is_unfinished:
        return False
    run.streams, run.changes, run.feed = quiet.streams, quiet.changes, quiet.feed
    answers.clear()
    return True


def _describe(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has to be stored of a state: not when which interval was read."""
    described: dict[str, Any] = {
        name: _describe(part) if name in LISTS else part for name, part in state.items() if name != "seen_ms"
    }
    if "covered" in described:
        described["covered"] = Coverage((lo, hi, 0) for lo, hi, _ in described["covered"]).intervals
    return described


def _refuse() -> None:
    raise NotQuietError


class _Nothing:
    """Stored rows that cannot be queried."""

    def __getattr__(self, name: str) -> Any:
        raise NotQuietError


class _NoRows(RowBuffer):
    """A buffer that takes no rows."""

    def _put(self, *_: object) -> None:
        raise NotQuietError


class _NewestPagesClient(AnsweredClient):
    """A client that requests the newest page of each list once, and stores the answers."""

    def __getattr__(self, name: str) -> Any:
        if name in (*NEWEST_PAGES, "unknown_chats", "transport"):
            return super().__getattr__(name)
        raise NotQuietError

    def _ask(self, name: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
        if any((*values, *options.values())) or name in self._answers:
            raise NotQuietError
        try:
            page = method()
        except MsgBubblesError as error:
            self._answers[name] = partial(_raise, error)
            raise NotQuietError from None
        self._answers[name] = lambda: page
        return page


def _raise(error: MsgBubblesError) -> Any:
    raise error
