"""Read HTTP responses: the body up to a maximum size, and failures as the errors of `errors`."""

from __future__ import annotations

import math
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from .errors import (
    AuthenticationError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    PermanentError,
    RateLimitedError,
    RetryableError,
)
from .mentions import has_handle

# A page of 100 messages with long texts is well under a megabyte.
MAX_BODY_BYTES = 64 * 1024 * 1024
# Both expand a read of 64 KB to at most that size. Other encodings, and combinations, have no such limit.
ENCODINGS = "gzip, deflate"


@dataclass(frozen=True)
class Answer:
    """A successful response.

    `fetched_at` is when the request was sent by this machine's clock, `server_at` the same moment by the API's clock,
    and `date` the response's `Date`, null without a readable one (all UTC).
    """

    status: int
    body: bytes
    request_id: str | None
    fetched_at: datetime
    server_at: datetime
    date: datetime | None = None


class _ErrorBody(msgspec.Struct):
    error: str | None = None
    message: str | None = None
    request_id: str | None = None


def read_body(response: httpx.Response) -> bytes:
    """Read and decompress a body. Raises `RetryableError` if it is too large, or has another encoding."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", *ENCODINGS.split(", ")):
        raise RetryableError(f"the answer has another encoding than the requested {ENCODINGS}")
    chunks = []
    size = 0
    for chunk in response.iter_bytes():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise RetryableError(f"an answer over {MAX_BODY_BYTES} bytes was cut off")
        chunks.append(chunk)
    return b"".join(chunks)


def read_date(response: httpx.Response) -> datetime | None:
    """Read the API's clock from the `Date` header."""
    return _parse_http_date(response.headers.get("Date"))


def read_request_id(response: httpx.Response) -> str | None:
    """Read the `X-Request-Id` header."""
    return _check_request_id(response.headers.get("X-Request-Id"))


def read_error_message(body: bytes) -> str | None:
    """Read the API's message for people. Never put it into an error, because it may quote anything."""
    return _decode_error(body).message


def build_error(response: httpx.Response, body: bytes) -> Exception:
    """Build the error for an unsuccessful response."""
    status = response.status_code
    fields = _decode_error(body)
    # A stable code is a short word; other text may be anything.
    is_code = fields.error and fields.error.isidentifier() and len(fields.error) <= 64 and not has_handle(fields.error)
    code = fields.error if is_code else None
    request_id = read_request_id(response) or _check_request_id(fields.request_id)
    # Not the reason phrase of the response: it may be anything.
    message = f"the API answered {status} {code or httpx.codes.get_reason_phrase(status)}".rstrip()
    if status == 429:
        limited = RateLimitedError(message, status=status, code=code, request_id=request_id)
        now = read_date(response) or datetime.now(UTC)
        limited.retry_after_seconds = parse_retry_after(response.headers.get("Retry-After"), now)
        return limited
    kinds = {401: AuthenticationError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError}
    is_passing = (status >= 500 and status != 501) or status in (408, 425)
    kind = RetryableError if is_passing else kinds.get(status, PermanentError)
    if status == 401:
        message += ": check the API key"
    elif status == 403:
        message += ": the key is valid, but has no access to this, or the account is not active; ask MsgBubbles"
    elif response.is_redirect:
        message, code = f"{message}: redirects are not followed, to protect the key; fix base_url", None
    return kind(message, status=status, code=code, request_id=request_id)


def describe_connection_error(error: BaseException, host: str) -> str:
    """Describe why there was no answer, and what to check if that is clear. Quotes no URL."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return f"there is no host {host}; check base_url and the network"
        if isinstance(cause, ConnectionRefusedError):
            return f"nothing listens on {host}; check base_url"
        if isinstance(cause, httpx.ConnectTimeout):
            return f"{host} does not answer; check base_url, the firewall and the proxy"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {host} is not trusted ({cause.verify_message.rstrip('.')}); check base_url and "
                "the clock, or name a file with the certificates of your network in SSL_CERT_FILE"
            )
        if isinstance(cause, ssl.SSLError):
            return f"{host} does not speak TLS there ({cause.reason}); check the port in base_url"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__} ({host})"


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds to wait by a `Retry-After` header, at least one; null if it cannot be read.

    The header is a number of seconds or an HTTP date; `now` is the time by the API's clock.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        at = _parse_http_date(value)
        if at is None:
            return None
        seconds = (at - now).total_seconds()
    return max(seconds, 1.0) if math.isfinite(seconds) else None


def _parse_http_date(value: str | None) -> datetime | None:
    try:
        at = parsedate_to_datetime(value) if value else None
    except (ValueError, OverflowError):
        return None
    return at if at is None or at.tzinfo else at.replace(tzinfo=UTC)


def _decode_error(body: bytes) -> _ErrorBody:
    try:
        return msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _ErrorBody()


def _check_request_id(value: str | None) -> str | None:
    """Return a request id, which errors and rejected rows quote; null for other text."""
    return value if value and re.fullmatch("[A-Za-z0-9_-]{1,128}", value) else None
