"""Errors, grouped by what the caller should do.

MsgBubblesError
├── ConfigurationError      fix the configuration
├── RetryableError          try again later: the network, a malformed answer, 5xx
│   ├── RateLimitedError    try again when the window resets
│   └── UnreachableError    no connection: check the network and `base_url`
├── PermanentError          do not repeat the request as it is: 4xx, or an API that breaks its own paging
│   ├── NotFoundError       404: gone, or another account's
│   ├── NoIdError           created, but the answer has no id: look it up
│   └── ConflictError       409: `conflict`, `not_a_group`
├── AuthenticationError     401: fix the key
│   └── ForbiddenError      403: the key has no access to this object, this endpoint or the whole account
└── Halt                    not a fault: the caller asked to stop
    ├── Interrupted         Ctrl-C, or SIGTERM
    └── LimitReached        one of the limits of this run

No message holds a key, a handle or a text: of the API's own message only its stable code is quoted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Limit = Literal["requests", "batch", "refresh share", "missing rows"]


class MsgBubblesError(Exception):
    """Base of every error of this package."""


class ConfigurationError(MsgBubblesError):
    """The configuration is wrong; the message names the key and how to fix it."""


class ApiError(MsgBubblesError):
    """The API or the connection failed. `code` is the API's stable error code, null if it sent none."""

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{message} (request {request_id})" if request_id else message)
        self.status = status
        self.code = code
        self.request_id = request_id


class RetryableError(ApiError):
    """The same request may succeed later."""


class RateLimitedError(RetryableError):
    """429. `retry_after_seconds` is the wait that the API asked for, null if it named none."""

    retry_after_seconds: float | None = None


class UnreachableError(RetryableError):
    """No connection to the API: the network, the host name, the port or the certificate."""


class PermanentError(ApiError):
    """The same request will fail again."""


class NotFoundError(PermanentError):
    """404: it does not exist, or belongs to another account."""


class NoIdError(PermanentError):
    """Something was created, but the answer has no id. Look it up."""


class ConflictError(PermanentError):
    """409."""


class AuthenticationError(ApiError):
    """401: the key is wrong."""


class ForbiddenError(AuthenticationError):
    """403: the key is valid, but has no access to this object, this endpoint or the whole account."""


# The errors of a request for one object that leave others possible: all but a wrong key.
SKIPPABLE_ERRORS = (RetryableError, PermanentError, ForbiddenError)


class Halt(MsgBubblesError):  # noqa: N818 - not an error
    """The caller asked to stop. Everything read so far is valid."""


class Interrupted(Halt):
    """A signal asked to stop."""


class LimitReached(Halt):
    """A limit of this run was reached: all its requests, or those for one purpose."""

    def __init__(self, limit: Limit, message: str = "") -> None:
        super().__init__(message or f"limit reached: {limit}")
        self.limit = limit


@contextmanager
def until(limit: Limit) -> Iterator[None]:
    """End the block without an error when this limit is reached."""
    try:
        yield
    except LimitReached as reached:
        if reached.limit != limit:
            raise


def is_unit_error(error: BaseException) -> bool:
    """Return whether an error concerns only the requested object, not the key, the network or the whole API."""
    if isinstance(error, AuthenticationError):
        return isinstance(error, ForbiddenError)
    return isinstance(error, ApiError) and not isinstance(error, UnreachableError | RateLimitedError)
