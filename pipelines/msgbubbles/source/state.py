"""The version of what the readers remember in dlt's state, which also travels with a published database."""

from __future__ import annotations

from typing import Any

from msgbubbles.errors import ConfigurationError

# Count it up when a state that is written can no longer be read by the versions before.
STATE_VERSION = 1


def checked_state(state: dict[str, Any]) -> dict[str, Any]:
    """A stream's state, if this version can read it. Raises `ConfigurationError`."""
    version = state.get("version", STATE_VERSION)
    if not isinstance(version, int) or version > STATE_VERSION:
        raise ConfigurationError(
            f"this warehouse was written by a newer version of this project (its state has version {version}, this one "
            f"reads up to {STATE_VERSION}): upgrade, or choose another --database; nothing was changed"
        )
    return state
