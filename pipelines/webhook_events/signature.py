"""Whether a delivery was signed by the account's API.

The vendor documents that deliveries are signed, and neither the header nor the scheme where we can read it. So the
headers and what is signed are configuration; the defaults are those of the Standard Webhooks specification
(standardwebhooks.com), whose secrets begin with `whsec_` too. In the signature's header, one signature or several are
taken, in hex or base64, alone or behind a version as in `v1,...`, `v1=...` or `sha256=...`; a `t=` among them is the
time, where no header is named for it. A secret is used as it is written, and as base64 behind its `whsec_`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

MAX_CANDIDATES = 16
MILLISECONDS_FROM = 100_000_000_000  # in seconds, the year 5138


class Refusal(StrEnum):
    """Why a delivery is not taken for the API's. `STALE` is one that is signed, and too old or of the future."""

    UNSIGNED = "unsigned"
    FORGED = "forged"
    STALE = "stale"


@dataclass(frozen=True)
class Scheme:
    """What is signed, and where its parts are. Names of headers are in lower case; `timestamp_header` may be empty."""

    signature_header: str
    timestamp_header: str
    id_header: str
    signed_content: str
    digest: str
    tolerance_seconds: float

    def signs(self, part: str) -> bool:
        return f"{{{part}}}" in self.signed_content

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers that a delivery must have."""
        optional = [("id", self.id_header), ("timestamp", self.timestamp_header)]
        return (self.signature_header, *(name for part, name in optional if name and self.signs(part)))


def refusal_of(
    scheme: Scheme, secrets: Iterable[str], headers: Mapping[str, str], body: bytes, now_seconds: float
) -> Refusal | None:
    """Why a delivery has to be refused; null where one of the secrets has signed it just now.

    Takes the same time whichever part of a signature is wrong. Where the time is not signed, age is not looked at.
    """
    signature = headers.get(scheme.signature_header)
    if not signature or any(not headers.get(name) for name in scheme.headers):
        return Refusal.UNSIGNED
    tokens = re.split(r"[\s,;]+", signature)[:MAX_CANDIDATES]
    timestamp = headers.get(scheme.timestamp_header) if scheme.timestamp_header else _time_among(tokens)
    if scheme.signs("timestamp") and not timestamp:
        return Refusal.UNSIGNED
    content = _content(scheme, headers.get(scheme.id_header) or "", timestamp or "", body)
    is_signed = False
    for secret in secrets:
        for key in keys_of(secret):
            digest = hmac.digest(key, content, scheme.digest)
            for token in tokens:
                is_signed |= _is_written(digest, token)
    if not is_signed:
        return Refusal.FORGED
    if scheme.signs("timestamp"):
        at = _seconds(timestamp or "")
        if at is None or abs(now_seconds - at) > scheme.tolerance_seconds:
            return Refusal.STALE
    return None


@lru_cache(maxsize=64)
def keys_of(secret: str) -> tuple[bytes, ...]:
    """The keys that a secret may stand for: as it is written, and as base64 without its prefix."""
    keys = [secret.encode()]
    encoded = secret.removeprefix("whsec_")
    with suppress(ValueError):
        keys.append(base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
    return tuple(key for key in keys if key)


def _content(scheme: Scheme, delivery_id: str, timestamp: str, body: bytes) -> bytes:
    parts = {"{id}": delivery_id.encode("latin-1", "replace"), "{timestamp}": timestamp.encode("latin-1", "replace")}
    pieces = re.split(r"(\{id\}|\{timestamp\}|\{body\})", scheme.signed_content)
    return b"".join(body if piece == "{body}" else parts.get(piece, piece.encode()) for piece in pieces)


def _is_written(digest: bytes, token: str) -> bool:
    found = False
    # Behind a version, or without one: the padding of base64 is also an equals sign.
    for candidate in (token, token.partition("=")[2]):
        given = candidate.encode("latin-1", "replace")
        found |= hmac.compare_digest(given.lower(), digest.hex().encode())
        found |= hmac.compare_digest(given.rstrip(b"="), base64.b64encode(digest).rstrip(b"="))
    return found


def _time_among(tokens: Iterable[str]) -> str | None:
    return next((token[2:] for token in tokens if token.startswith("t=")), None)


def _seconds(timestamp: str) -> float | None:
    """Seconds since 1970 of a number of seconds or milliseconds, or of an ISO 8601 instant."""
    if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", timestamp):
        number = float(timestamp)
        return number / 1000 if number >= MILLISECONDS_FROM else number
    try:
        at = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def body_hash(body: bytes) -> str:
    """What stands for an event that has no id of its own."""
    return f"body:{hashlib.blake2b(body, digest_size=16).hexdigest()}"
