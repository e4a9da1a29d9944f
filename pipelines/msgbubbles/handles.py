"""Convert handles to their canonical form, E.164 or a lower-case email address, so that they can be compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import phonenumbers

EMAIL = re.compile(r"[^@\s,;<>()\[\]\"\\:]+@[^@\s,;<>()\[\]\"\\:]+\.[^@\s,;.<>()\[\]\"\\:]+")
SCHEME = re.compile(r"(tel|sms|mailto|imessage):", re.IGNORECASE)
NUMBER = re.compile(r"\+?[0-9 ().-]{7,30}")
# Countries in which networks write one mobile number in two ways, and the form to compare. Keep the same rules in the
# macro `folded_handle` of transforms/.
NATIONAL_FORMS = (
    (re.compile(r"\+549(\d{10})"), r"+54\1"),  # Argentina: a 9 for mobile numbers, only from abroad
    (re.compile(r"\+521(\d{10})"), r"+52\1"),  # Mexico: a 1 for mobile numbers, until 2019
    (re.compile(r"\+55(\d\d)9([6-9]\d{7})"), r"+55\1\2"),  # Brazil: the ninth digit, which older accounts lack
    (re.compile(r"\+22901(\d{8})"), r"+229\1"),  # Benin: 01 before all numbers, since 2024
)


def parse_handle(written: str) -> str | None:
    """Return a handle in its canonical form: `+14155550100` for `+1 (415) 555-0100`, emails in lower case.

    Null for any other text. A number has to begin with + and its country code. Only its length is checked, because
    Google's tables of assigned numbers lag behind the networks. Invisible characters from copying are ignored, and so
    is a leading apostrophe, with which spreadsheets mark text.
    """
    written = strip_invisible(written).removeprefix("'")
    if "@" in written:
        return written.lower() if EMAIL.fullmatch(written) else None
    if not written.startswith("+"):
        return None
    try:
        number = phonenumbers.parse(written)
    except phonenumbers.NumberParseException:
        return None
    e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    if number.extension or not (phonenumbers.is_possible_number(number) or _in_national_form(e164) != e164):
        return None
    return e164


def normalize_handle(written: str) -> str:
    """Return the canonical form of a handle, or any other text in lower case."""
    return parse_handle(written) or written.strip().lower()


@lru_cache(maxsize=100_000)
def fold_handle(written: str) -> str:
    """Return a form that is equal for all spellings of one person's handle, for comparison and not for sending.

    `+541123456789` for `+54 9 11 2345-6789`, `ben@example.com` for `mailto:Ben@Example.com`.
    """
    return _in_national_form(normalize_handle(SCHEME.sub("", strip_invisible(written), count=1)))


def exclude_people(handles: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return the handles, sorted, that are no spelling of any of `others`.

    A number without its country code may be one of several people, and counts as each of them.
    """
    others = {fold_handle(other) for other in others}
    return sorted(
        handle
        for handle in handles
        if (folded := fold_handle(handle)) not in others and not any(_lacks_code(folded, other) for other in others)
    )


def _lacks_code(handle: str, other: str) -> bool:
    """Return whether exactly one of two numbers has a country code, and they may be the same."""
    if handle.startswith("+") == other.startswith("+") or not (NUMBER.fullmatch(handle) and NUMBER.fullmatch(other)):
        return False
    return phonenumbers.is_number_match(handle, other) in (
        phonenumbers.MatchType.NSN_MATCH,
        phonenumbers.MatchType.SHORT_NSN_MATCH,
    )


def _in_national_form(e164: str) -> str:
    for spelling, form in NATIONAL_FORMS:
        if spelling.fullmatch(e164):
            return spelling.sub(form, e164)
    return e164


def strip_invisible(written: str) -> str:
    """Remove invisible characters (direction marks, zero-width ones), and convert full-width characters."""
    shown = (char for char in unicodedata.normalize("NFKC", written) if unicodedata.category(char) != "Cf")
    return "".join(shown).strip()
