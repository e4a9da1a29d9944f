"""How often messages are read again while events tell of their changes."""

from __future__ import annotations

from typing import Any

from msgbubbles_sync.workspace import Workspace

from .secrets import settings_of


def refresh_options(workspace: Workspace) -> dict[str, Any]:
    """`refresh_messages` of `[webhooks]` in place of the source's own, while events are reliable. Raises `UsageError`
    for a configuration that cannot be used."""
    slower = settings_of().refresh_messages
    if slower is None:
        return {}
    # Only whoever has webhooks pays for the look.
    from .health import are_reliable

    return {"refresh_messages": slower} if are_reliable(workspace) else {}
