"""How often messages are read again while events tell of their changes."""

from __future__ import annotations

from msgspec import structs

from msgbubbles.settings import SourceSettings
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.workspace import Workspace


def with_refresh(workspace: Workspace, settings: Settings) -> SourceSettings:
    """Return the source's settings, with `refresh_messages` of `[webhooks]` while events are reliable."""
    slower = settings.webhooks.refresh_messages
    if slower is None:
        return settings.source
    # Only those who have webhooks pay for the look.
    from .health import are_reliable

    return structs.replace(settings.source, refresh_messages=slower) if are_reliable(workspace) else settings.source
