"""Define privacy policies: which personal data is stored, and the pseudonyms that replace handles and titles.

A pseudonym is a keyed hash (HMAC-SHA256) of a handle in its canonical form. It is the same in every table and every
run, and cannot be reversed by trying numbers without the key.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from .errors import ConfigurationError
from .handles import fold_handle, normalize_handle
from .mentions import canonical_handle
from .settings import convert, list_settings

SECTION = "sources.msgbubbles.privacy"
MIN_KEY_CHARACTERS = 32
GENERATE_KEY = "python -c 'import secrets; print(secrets.token_hex(32))'"
PSEUDONYM = re.compile(r"[ptr]_[a-z2-7]{24}")
MAX_CACHED = 200_000
Days = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The privacy settings, documented in `dlt_config/config.toml`. The defaults are those of the preset `full`.

    The values of each setting are listed from the loosest to the strictest.
    """

    handles: Literal["keep", "pseudonym"] = "keep"
    own_numbers: Literal["keep", "pseudonym"] = "keep"
    text: Literal["keep", "length", "drop"] = "keep"
    titles: Literal["keep", "pseudonym", "drop"] = "keep"
    file_names: Literal["keep", "drop"] = "keep"
    metadata: Literal["keep", "drop"] = "keep"
    extra: Literal["keep", "drop"] = "keep"
    webhook_payload: Literal["keep", "drop"] = "keep"
    text_days: Days | None = None
    thread_days: Days | None = None

    @property
    def redacts(self) -> bool:
        """Whether any value of a row is changed, which requires a key."""
        return any(getattr(self, name) != order[0] for name, order in ORDERS.items())

    def loosened(self, before: Policy) -> list[str]:
        """Return the settings that are looser than those of `before`."""
        return [
            name
            for name, order in ORDERS.items()
            if order.index(getattr(self, name)) < order.index(getattr(before, name))
        ]


# The values of each setting, in this order.
ORDERS: dict[str, tuple[str, ...]] = {
    name: get_args(hint) for name, hint in list_settings(Policy).items() if get_origin(hint) is Literal
}
FULL = Policy()
PRESETS: dict[str, Policy] = {
    "full": FULL,
    "analytics": Policy(
        handles="pseudonym", text="length", titles="pseudonym", file_names="drop", metadata="drop", extra="drop",
        webhook_payload="drop",
    ),
    "minimal": Policy(
        handles="pseudonym", own_numbers="pseudonym", text="drop", titles="drop", file_names="drop", metadata="drop",
        extra="drop", webhook_payload="drop",
    ),
}  # fmt: skip


def parse_policy(settings: Mapping[str, Any]) -> Policy:
    """Build the policy of a `preset` (default: `full`), modified by the other settings except `key` and `vault`.

    Raises `ConfigurationError`, which names the setting and its possible values.
    """
    values = {name: value for name, value in settings.items() if name not in ("key", "vault") and value is not None}
    preset = values.pop("preset", "full")
    if preset not in PRESETS:
        raise ConfigurationError(f"[{SECTION}] preset is one of {', '.join(PRESETS)}; fix dlt_config/config.toml")
    unknown = sorted(values.keys() - set(Policy.__struct_fields__))
    if unknown:
        name = unknown[0] if re.fullmatch(r"\w{1,40}", unknown[0]) else "of that name"
        raise ConfigurationError(
            f"[{SECTION}] has no setting {name}; there are preset, key, vault, {', '.join(Policy.__struct_fields__)}"
        )
    hints = list_settings(Policy)
    own = {name: convert(f"[{SECTION}] {name}", value, hints[name]) for name, value in values.items()}
    policy = msgspec.structs.replace(PRESETS[preset], **own)
    if policy.own_numbers == "pseudonym" and policy.handles == "keep":
        raise ConfigurationError(
            f'[{SECTION}] own_numbers = "pseudonym" requires handles = "pseudonym": it would hide only ours; '
            "set handles too, or leave own_numbers out"
        )
    return policy


class Pseudonymizer:
    """Builds pseudonyms and hashes with one key. Raises `ConfigurationError` for a key that could be guessed."""

    def __init__(self, key: str) -> None:
        if len(key) < MIN_KEY_CHARACTERS:
            raise ConfigurationError(
                f"[{SECTION}] key has fewer than {MIN_KEY_CHARACTERS} characters; generate one with: {GENERATE_KEY}"
            )
        self._key = key.encode()
        self._cache: dict[tuple[str, str], str] = {}

    @classmethod
    def from_key(cls, key: object) -> Pseudonymizer:
        """Build one with the configured key. Raises `ConfigurationError` if the key is missing."""
        if not isinstance(key, str) or not key:
            raise ConfigurationError(
                f'the privacy settings need a key: set [{SECTION}] key = "..." in dlt_config/secrets.toml, or '
                f"SOURCES__MSGBUBBLES__PRIVACY__KEY. Generate it once with {GENERATE_KEY}, and never change it"
            )
        return cls(key)

    def handle(self, written: str) -> str:
        """Return the pseudonym of a handle, the same for any spelling: `p_` and 24 letters and digits."""
        return self._pseudonym("p", written)

    def title(self, written: str) -> str:
        """Return the pseudonym of a title: `t_` and 24 letters and digits."""
        return self._pseudonym("t", written)

    def row(self, written: str) -> str:
        """Return the hash that replaces an unreadable row: `r_` and 24 letters and digits."""
        return self._pseudonym("r", written)

    def erased_handle(self, written: str) -> str:
        """Return the hash by which an erased handle, or its pseudonym, is recognized."""
        return self._hash("erased handle", self.handle(written))

    def was_erased(self, written: str, erased: frozenset[str]) -> bool:
        """Return whether the `erased_handle` of a handle is in `erased`."""
        if self.erased_handle(written) in erased:
            return True
        # Earlier versions stored a hash for each national spelling of a number.
        former = normalize_handle(written)
        return former != fold_handle(written) and (
            self._hash("erased handle", f"p_{self._hash('p', former)}") in erased
        )

    def erased_chat(self, chat_id: str) -> str:
        """Return the hash by which an erased person's chat is recognized."""
        return self._hash("erased chat", chat_id)

    @property
    def check(self) -> str:
        """A hash that identifies this key, and reveals nothing else about it."""
        return self._hash("key", "")

    def _pseudonym(self, kind: str, written: str) -> str:
        pseudonym = self._cache.get((kind, written))
        if pseudonym is None:
            # A pseudonym stays as it is, because a policy may be applied to redacted rows again.
            is_pseudonym = written[:2] == f"{kind}_" and PSEUDONYM.fullmatch(written) is not None
            text = fold_handle(canonical_handle(written)) if kind == "p" else written
            pseudonym = written if is_pseudonym else f"{kind}_{self._hash(kind, text)}"
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[kind, written] = pseudonym
        return pseudonym

    def _hash(self, kind: str, text: str) -> str:
        digest = hmac.digest(self._key, f"{kind}\0{text}".encode(), "sha256")
        return base64.b32encode(digest[:15]).decode().lower()
