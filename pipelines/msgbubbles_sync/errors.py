"""Errors of the application."""

from __future__ import annotations

from msgbubbles.errors import ConfigurationError


class UsageError(ConfigurationError):
    """An option, a file or a warehouse is wrong; the message says how to fix it."""


class InputFileError(UsageError):
    """A file with the user's own rows cannot be read. Only the part of a run that needs it fails."""


class TransformError(Exception):
    """The marts could not be built or tested.

    The message names the models, and the file with the database's messages, which may quote rows.
    """


class CombinedFileError(Exception):
    """The file of an account was published, but not the one that shows all accounts; `__cause__` is why."""


class RefusedMartsError(TransformError):
    """Everything was published but some marts; the message names them."""


def list_causes(error: BaseException) -> list[BaseException]:
    """Return an error and those that it comes from, the nearest first; dlt's errors have one in `exception`."""
    causes = [error]
    for cause in causes:  # grows meanwhile
        more = (cause.__cause__, cause.__context__, getattr(cause, "exception", None))
        causes += [other for other in more if isinstance(other, BaseException) and other not in causes]
    return causes


def was_interrupted(error: BaseException | None) -> bool:
    """Return whether an error comes from Ctrl-C, of which dlt, dbt and DuckDB make errors of their own."""
    return error is not None and any(isinstance(cause, KeyboardInterrupt) for cause in list_causes(error))
