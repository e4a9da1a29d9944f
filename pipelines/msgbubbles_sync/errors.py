"""Errors of the application."""

from __future__ import annotations


class UsageError(Exception):
    """An option, the configuration or a file is wrong; the message says how to fix it."""


class TransformError(Exception):
    """The marts could not be built or tested.

    The message names the models, and the file with the database's messages, which may quote rows.
    """
