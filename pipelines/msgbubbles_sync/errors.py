"""Errors of the application."""

from __future__ import annotations


class UsageError(Exception):
    """The user has to change an option, the configuration or a file; the message says how."""


class TransformError(Exception):
    """The marts could not be built or tested. The message names the models, and the file with what the database said:
    that may quote rows, so it is in no message.
    """
