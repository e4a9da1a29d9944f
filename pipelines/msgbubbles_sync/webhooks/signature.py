"""Whether a delivery was signed by the account's API.

The vendor documents that deliveries are signed, and neither the header nor the scheme where we can read it. So the
headers and what is signed are configuration; the defaults are those of the Standard Webhooks specification
(standardwebhooks.com), whose secrets begin with `whsec_` too. In the signature's header, one signature or several are
taken, in hex or base64, alone or behind a version as in `v1,...`, `v1=...` or `sha256=...`; a `t=` among them is the
time, where no header is named for it. Header lines of the same name count as one. A secret is used as it is written,
and as base64 behind its `whsec_`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from .times import parse_time

MAX_CANDIDATES = 64
MAX_TIMESTAMPS = 4
_DATES = re.compile(r"(?:^|[\s,;])t=(.*?)(?=[\s,;]\w{1,10}=|$)", re.MULTILINE)


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


def check_request(
    scheme: Scheme, secrets: Iterable[str], headers: Mapping[str, str], body: bytes, now_seconds: float
) -> Refusal | None:
    """Why a delivery has to be refused; null where one of the secrets has signed it just now. Of a header with several
    lines, `headers` has them with line breaks between them.

    Where the time is not signed, age is not looked at.
    """
    if any(not headers.get(name) for name in scheme.headers):
        return Refusal.UNSIGNED
    timestamps = _timestamps(scheme, headers)
    if scheme.signs("timestamp") and not any(timestamps):
        return Refusal.UNSIGNED
    timestamp = signed_timestamp(scheme, secrets, headers, body)
    if timestamp is None:
        return Refusal.FORGED
    if scheme.signs("timestamp"):
        at = parse_time(timestamp)
        if at is None or abs(now_seconds - at.timestamp()) > scheme.tolerance_seconds:
            return Refusal.STALE
    return None


def signed_timestamp(scheme: Scheme, secrets: Iterable[str], headers: Mapping[str, str], body: bytes) -> str | None:
    """Return the timestamp, as it is written, under which one of the secrets has signed the body: empty where the
    scheme signs none, null where nothing is signed. Takes the same time whichever part of a signature is wrong.
    """
    tokens = _tokens(scheme, headers)
    keys = [key for secret in secrets for key in keys_of(secret)]
    found = None
    for timestamp in _timestamps(scheme, headers):
        content = _content(scheme, headers.get(scheme.id_header) or "", timestamp, body)
        for key in keys:
            digest = hmac.digest(key, content, scheme.digest)
            for token in tokens:
                if _is_written(digest, token):
                    found = timestamp
    return found


def _tokens(scheme: Scheme, headers: Mapping[str, str]) -> list[str]:
    return re.split(r"[\s,;]+", headers.get(scheme.signature_header) or "")[:MAX_CANDIDATES]


def _timestamps(scheme: Scheme, headers: Mapping[str, str]) -> list[str]:
    """Which timestamps may be signed: several where a header has several lines, or several signatures one each."""
    if not scheme.signs("timestamp"):
        return [""]
    if scheme.timestamp_header:
        given = (headers.get(scheme.timestamp_header) or "").split("\n")
    else:
        given = [token[2:] for token in _tokens(scheme, headers) if token.startswith("t=")]
        # An HTTP date holds what divides tokens.
        given += [one.strip(" ,;") for one in _DATES.findall(headers.get(scheme.signature_header) or "")]
    return list(dict.fromkeys(given))[:MAX_TIMESTAMPS] or [""]


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


def hash_body(body: bytes, timestamp: str = "") -> str:
    """Return what stands for an event that has no id of its own; of the same body another for each timestamp."""
    content = body + f"\0{timestamp}".encode("latin-1", "replace") if timestamp else body
    return f"body:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
