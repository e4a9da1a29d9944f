"""An account and a workspace for tests of groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helpers.context import build_context
from msgbubbles.client import Client
from msgbubbles.transport import Transport
from msgbubbles_sync.context import Context
from msgbubbles_sync.groups.job import apply_groups, list_groups
from msgbubbles_sync.groups.ledger import Entry, Ledger
from msgbubbles_sync.groups.model import ObservedGroup
from msgbubbles_sync.groups.plan import LIMITS, ChangeLimits
from msgbubbles_sync.groups.result import ApplyResult
from msgbubbles_sync.sandbox import Server
from msgbubbles_sync.workspace import Workspace

OURS = "+14155550100"


def row(
    key: str, *addresses: str, title: str | None = None, message: str = "Hello", number: str = OURS
) -> dict[str, object]:
    return {"key": key, "from_handle": number, "title": title, "addresses": list(addresses), "message": message}


@dataclass
class World:
    """A served account, and a workspace with its ledger."""

    server: Server
    workspace: Workspace
    max_attempts: int = 2

    def client(self) -> Client:
        transport = Transport(
            self.server.url, self.server.key, None, max_attempts=self.max_attempts, max_backoff_seconds=0.01
        )
        return Client(transport)

    def apply(self, *rows: dict[str, object], limits: ChangeLimits = LIMITS) -> ApplyResult:
        with self.client() as client:
            return apply_groups(self.context(), client, rows, limits=limits)

    def context(self) -> Context:
        return build_context(self.workspace)

    def observed(self, key: str) -> ObservedGroup:
        return list_groups(self.context())[key]

    def list_entries(self) -> list[Entry]:
        with Ledger.open(self.workspace.folder) as ledger:
            return ledger.list_entries()

    def requests(self, since: int = 0) -> list[str]:
        """Return the method and the last part of the path of each request."""
        return [f"{request.method} {request.path.split('/')[-1]}" for request in self.server.requests[since:]]


def outcomes(applied: ApplyResult) -> dict[tuple[str, str], int]:
    return dict(applied.counts)


def cut_next_write(world: World) -> None:
    """Perform the next write, but answer it with 502."""
    knobs = world.server.knobs

    def refusal(method: str, _path: str) -> None:
        knobs.errors_after_acting = float(method != "GET" and not done)
        if method != "GET":
            done.append(method)

    done: list[str] = []
    knobs.refusal = refusal


def groups_in(world: World) -> list[dict[str, Any]]:
    return [chat for chat in world.server.truth().chats if chat["is_group"]]


def people_in(world: World, key: str) -> set[str]:
    return set(world.server.account.participants(str(world.observed(key).chat_id)))
