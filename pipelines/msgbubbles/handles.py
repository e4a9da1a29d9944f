"""Handles in canonical form, so that a person is written the same way everywhere: E.164, or an e-mail address."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import phonenumbers

EMAIL = re.compile(r"[^@\s,;<>()\[\]\"\\:]+@[^@\s,;<>()\[\]\"\\:]+\.[^@\s,;.<>()\[\]\"\\:]+")
SCHEME = re.compile(r"(tel|sms|mailto|imessage):", re.IGNORECASE)
NUMBER = re.compile(r"\+?[0-9 ().-]{7,30}")
# Countries in which networks write the same mobile number in two ways, and what both have in common. The macro
# `folded_handle` of transforms/ has the same rules.
NATIONAL_FORMS = (
    (re.compile(r"\+549(\d{10})"), r"+54\1"),  # Argentina: a 9 for mobile numbers, only from abroad
    (re.compile(r"\+521(\d{10})"), r"+52\1"),  # Mexico: a 1 for mobile numbers, until 2019
    (re.compile(r"\+55(\d\d)9([6-9]\d{7})"), r"+55\1\2"),  # Brazil: the ninth digit, which older accounts lack
    (re.compile(r"\+22901(\d{8})"), r"+229\1"),  # Benin: 01 before all numbers, since 2024
)


def parse_handle(written: str) -> str | None:
    """Return a handle in its canonical form: `+14155550100` for `+1 (415) 555-0100`, e-mail addresses in lower case.

    Null for what is neither. A number has to begin with + and its country code. Only its length is checked, because
    Google's tables of the numbers in use lag behind the network. Invisible characters, which come along when a number
    is copied, are ignored, and so is a leading apostrophe, with which spreadsheets mark text.
    """
    written = _visible(written).removeprefix("'")
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
    """Return the canonical form of a handle, or a text that is neither a number nor an address in lower case."""
    return parse_handle(written) or written.strip().lower()


@lru_cache(maxsize=100_000)
def fold_handle(written: str) -> str:
    """Return a form that is equal for all spellings of one person's handle. It is for comparison, not for sending:
    `+541123456789` for `+54 9 11 2345-6789`, `ben@example.com` for `mailto:Ben@Example.com`.
    """
    return _in_national_form(normalize_handle(SCHEME.sub("", _visible(written), count=1)))


def without_people(handles: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return the handles, sorted, that are no spelling of any of `others`; a number without its country code may be
    one of several people, and counts as each of them.
    """
    others = {fold_handle(other) for other in others}
    return sorted(
        one
        for one in handles
        if (folded := fold_handle(one)) not in others and not any(_lacks_code(folded, other) for other in others)
    )


def _lacks_code(one: str, other: str) -> bool:
    """Return whether one of two numbers lacks its country code, and may be the other."""
    if one.startswith("+") == other.startswith("+") or not NUMBER.fullmatch(one) or not NUMBER.fullmatch(other):
        return False
    return phonenumbers.is_number_match(one, other) in (
        phonenumbers.MatchType.NSN_MATCH,
        phonenumbers.MatchType.SHORT_NSN_MATCH,
    )


def _in_national_form(e164: str) -> str:
    for spelling, form in NATIONAL_FORMS:
        if spelling.fullmatch(e164):
            return spelling.sub(form, e164)
    return e164


def _visible(written: str) -> str:
    """Remove invisible characters (direction marks, zero-width ones), and make full-width characters ordinary ones."""
    shown = (one for one in unicodedata.normalize("NFKC", written) if unicodedata.category(one) != "Cf")
    return "".join(shown).strip()
