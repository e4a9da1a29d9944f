"""The error that the application raises when the user has to change what was asked for."""

from __future__ import annotations


class UsageError(Exception):
    """What was asked for cannot be done as it was asked; the message says what to ask instead."""
