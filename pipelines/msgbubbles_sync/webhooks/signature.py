"""Verify the signature of a delivery.

The public documentation says that deliveries are signed, but not how. So the headers and the signed content are
configurable; the defaults are those of the Standard Webhooks specification (standardwebhooks.com), whose secrets also
begin with `whsec_`. The signature header may have several signatures, in hex or base64, with or without a version as in
`v1,...`, `v1=...` or `sha256=...`. A `t=` among them is the timestamp, if no header is configured for it. Header lines
of the same name are joined. A secret is tried as text, and as base64 after its `whsec_`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache

from msgbubbles.times import parse_time
from msgbubbles_sync.settings import WebhookSettings

MAX_CANDIDATES = 64
MAX_TIMESTAMPS = 4
_DATES = re.compile(r"(?:^|[\s,;])t=(.*?)(?=[\s,;]\w{1,10}=|$)", re.MULTILINE)


class Refusal(StrEnum):
    """Why a delivery is refused. `STALE` is signed, but too old or in the future."""

    UNSIGNED = "unsigned"
    FORGED = "forged"
    STALE = "stale"


def is_signed(scheme: WebhookSettings, part: str) -> bool:
    """Return whether the signed content has the `id`, `timestamp` or `body`."""
    return f"{{{part}}}" in scheme.signed_content


def list_required_headers(scheme: WebhookSettings) -> tuple[str, ...]:
    """Return the headers that a delivery must have."""
    optional = [("id", scheme.id_header), ("timestamp", scheme.timestamp_header)]
    return (scheme.signature_header, *(name for part, name in optional if name and is_signed(scheme, part)))


def sign(scheme: WebhookSettings, secret: str, delivery_id: str, timestamp: str, body: bytes) -> dict[str, str]:
    """Sign a delivery with a secret. Returns its headers."""
    key = _decode_secret(secret)[-1]
    digest = hmac.digest(key, _build_content(scheme, delivery_id, timestamp, body), scheme.digest).hex()
    headers = {scheme.id_header: delivery_id, scheme.timestamp_header: timestamp}
    headers[scheme.signature_header] = f"v1={digest}" if scheme.timestamp_header else f"t={timestamp},v1={digest}"
    return {name: value for name, value in headers.items() if name}


def check_request(
    scheme: WebhookSettings, secrets: Iterable[str], headers: Mapping[str, str], body: bytes, now_seconds: float
) -> Refusal | None:
    """Return why a delivery must be refused; null if one of the secrets signed it just now.

    `headers` has the lines of a repeated header joined by line breaks. If the timestamp is not signed, the age of a
    delivery is not checked.
    """
    if any(not headers.get(name) for name in list_required_headers(scheme)):
        return Refusal.UNSIGNED
    timestamps = _read_timestamps(scheme, headers)
    if is_signed(scheme, "timestamp") and not any(timestamps):
        return Refusal.UNSIGNED
    timestamp = find_signed_timestamp(scheme, secrets, headers, body)
    if timestamp is None:
        return Refusal.FORGED
    if is_signed(scheme, "timestamp"):
        at = parse_time(timestamp)
        if at is None or abs(now_seconds - at.timestamp()) > scheme.tolerance_seconds:
            return Refusal.STALE
    return None


def find_signed_timestamp(
    scheme: WebhookSettings, secrets: Iterable[str], headers: Mapping[str, str], body: bytes
) -> str | None:
    """Return the timestamp with which one of the secrets signed the body, as it is written; null if none did.

    Empty if the scheme signs no timestamp. Takes the same time whichever part of a signature is wrong.
    """
    tokens = _read_tokens(scheme, headers)
    keys = [key for secret in secrets for key in _decode_secret(secret)]
    signed = None
    for timestamp in _read_timestamps(scheme, headers):
        content = _build_content(scheme, headers.get(scheme.id_header) or "", timestamp, body)
        for key in keys:
            digest = hmac.digest(key, content, scheme.digest)
            for token in tokens:
                if _is_digest(token, digest):
                    signed = timestamp
    return signed


def _read_tokens(scheme: WebhookSettings, headers: Mapping[str, str]) -> list[str]:
    return re.split(r"[\s,;]+", headers.get(scheme.signature_header) or "")[:MAX_CANDIDATES]


def _read_timestamps(scheme: WebhookSettings, headers: Mapping[str, str]) -> list[str]:
    """Return the candidates for the signed timestamp: one for each header line, or for each signature."""
    if not is_signed(scheme, "timestamp"):
        return [""]
    if scheme.timestamp_header:
        candidates = (headers.get(scheme.timestamp_header) or "").split("\n")
    else:
        candidates = [token[2:] for token in _read_tokens(scheme, headers) if token.startswith("t=")]
        # An HTTP date contains the separators of tokens.
        candidates += [date.strip(" ,;") for date in _DATES.findall(headers.get(scheme.signature_header) or "")]
    return list(dict.fromkeys(candidates))[:MAX_TIMESTAMPS] or [""]


@lru_cache(maxsize=64)
def _decode_secret(secret: str) -> tuple[bytes, ...]:
    """Return the keys that a secret may stand for: its text, and its base64 without the prefix."""
    keys = [secret.encode()]
    encoded = secret.removeprefix("whsec_")
    with suppress(ValueError):
        keys.append(base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
    return tuple(key for key in keys if key)


def _build_content(scheme: WebhookSettings, delivery_id: str, timestamp: str, body: bytes) -> bytes:
    parts = {"{id}": delivery_id.encode("latin-1", "replace"), "{timestamp}": timestamp.encode("latin-1", "replace")}
    pieces = re.split(r"(\{id\}|\{timestamp\}|\{body\})", scheme.signed_content)
    return b"".join(body if piece == "{body}" else parts.get(piece, piece.encode()) for piece in pieces)


def _is_digest(token: str, digest: bytes) -> bool:
    is_equal = False
    # With or without a version: an equals sign may also be the padding of base64.
    for candidate in (token, token.partition("=")[2]):
        text = candidate.encode("latin-1", "replace")
        is_equal |= hmac.compare_digest(text.lower(), digest.hex().encode())
        is_equal |= hmac.compare_digest(text.rstrip(b"="), base64.b64encode(digest).rstrip(b"="))
    return is_equal


def hash_body(body: bytes, timestamp: str = "") -> str:
    """Return an id for an event without one, by its body and, if given, its timestamp."""
    content = body + f"\0{timestamp}".encode("latin-1", "replace") if timestamp else body
    return f"body:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
