"""Errors, by what the caller should do about them.

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
│   └── ForbiddenError      403: this object, this endpoint or the whole account is closed to the key
└── Halt                    not a fault: the caller asked to stop
    ├── Interrupted         Ctrl-C, or SIGTERM
    └── RequestsSpent       the requests allowed to this run are used up

No message holds a key, a handle or a text: the API's own message is quoted only as its stable code.
"""

from __future__ import annotations


class MsgBubblesError(Exception):
    """Base of every error of this package."""


class ConfigurationError(MsgBubblesError):
    """The configuration cannot be used; the message says which key is wrong and how to fix it."""


class ApiError(MsgBubblesError):
    """The API, or the way to it, failed. `code` is the API's stable error code, where it sent one."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{message} (request {request_id})" if request_id else message)
        self.status = status
        self.code = code
        self.request_id = request_id


class RetryableError(ApiError):
    """The same request may succeed later."""


class RateLimitedError(RetryableError):
    """429. `retry_after_seconds` is what the API asked for, null where it did not say."""

    retry_after_seconds: float | None = None


class UnreachableError(RetryableError):
    """No connection to the API: the network, the host name, the port or the certificate."""


class PermanentError(ApiError):
    """The same request will fail again."""


class NotFoundError(PermanentError):
    """404: it does not exist, or belongs to another account."""


class NoIdError(PermanentError):
    """A success whose answer has no id: it was created, and has to be looked up."""


class ConflictError(PermanentError):
    """409."""


class AuthenticationError(ApiError):
    """401: the key is wrong."""


class ForbiddenError(AuthenticationError):
    """403: the key is right; this object, this endpoint or the whole account is closed to it. Only other requests show
    which of them.
    """


class Halt(MsgBubblesError):  # noqa: N818 - not an error
    """The caller asked to stop. What was read until now is valid."""


class Interrupted(Halt):
    """A signal asked to stop."""


class RequestsSpent(Halt):
    """The requests that the caller allowed (`max_requests`) are used up."""


def is_unit_error(error: BaseException) -> bool:
    """Return whether an error concerns only what was requested, and not the key, the network or the whole API."""
    if isinstance(error, AuthenticationError):
        return isinstance(error, ForbiddenError)
    return isinstance(error, ApiError) and not isinstance(error, UnreachableError | RateLimitedError)
