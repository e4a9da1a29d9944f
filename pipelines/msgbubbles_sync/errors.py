"""Errors of the application."""

from __future__ import annotations


class UsageError(Exception):
    """The user has to change an option, the configuration or a file; the message says how."""
