"""Handles in one form, so that the same person is written the same way everywhere: E.164, or an e-mail address."""

from __future__ import annotations

import re

import phonenumbers

EMAIL = re.compile(r"[^@\s,;]+@[^@\s,;]+\.[^@\s,;.]+")


def handle_of(written: str) -> str | None:
    """The handle in its one form: `+14155550100` for `+1 (415) 555-0100`, e-mail addresses in lower case.

    Null for what is neither. A number has to begin with + and its country code; of which numbers are in use, Google's
    tables know less than the network does, so only their length is looked at.
    """
    written = written.strip()
    if "@" in written:
        return written.lower() if EMAIL.fullmatch(written) else None
    if not written.startswith("+"):
        return None
    try:
        number = phonenumbers.parse(written)
    except phonenumbers.NumberParseException:
        return None
    if number.extension or not phonenumbers.is_possible_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def normalised(written: str) -> str:
    """The one form of a handle; of what is neither a number nor an address, the text in lower case."""
    return handle_of(written) or written.strip().lower()
