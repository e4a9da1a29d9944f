"""Handles within other text, in the spellings that people and software use: `+1 (415) 555-0111`, `tel:+14155550111`,
`0014155550111`, `Ben@Example.com`, and the pseudonyms that stand for them.

Names of fields are text too: an API may send an object whose keys are handles.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache

from .handles import normalize_handle, parse_handle

MASK = "[handle]"
MIN_DIGITS, MAX_DIGITS = 7, 15
# What may stand between the digits of one number, four characters at most: spaces, brackets, dashes, and characters
# that are not visible.
BETWEEN = r"\s().\-/~·\u00ad\u2010-\u2015\u2212\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
NUMBER = re.compile(rf"(?:[+＋][{BETWEEN}]{{0,4}})?\d(?:[{BETWEEN}]{{0,4}}\d){{{MIN_DIGITS - 1},}}")
# Bounded, because a text may be a megabyte without an @.
ADDRESS = re.compile(r"[\w.+-][\w.!#$%&'*+/=?^`{|}~-]{0,63}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
# After one of these an address may begin: `to=ben@example.com`. After a dot or a plus sign it would be another's.
BEFORE_ADDRESS = re.compile(r"[!#$%&'*/=?^`{|}~]+")
PSEUDONYM = re.compile(r"\bp_[a-z2-7]{24}\b")
# What may stand around a handle without making it another's: a name, a scheme, brackets and quotes; parameters.
AROUND = rf"[{BETWEEN}'\"]*"
BEFORE = re.compile(
    rf"(?:[^<>@\d]*<)?{AROUND}(?:(?:tel|smsto|sms|mms|mailto|imessage|facetime|whatsapp|sips?):/*)?{AROUND}", re.I
)
AFTER = re.compile(rf"{AROUND}(?:[;?][^<>@]*)?>?{AROUND}")
# Of a JSON text that is not decoded.
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")

Span = tuple[int, int]


def replace_handles(text: str, is_meant: Callable[[str], bool], word: str) -> str:
    """Put `word` in the place of every handle for which `is_meant`: it gets a number with + and digits only, an
    address, or a pseudonym, as written otherwise.
    """
    if "@" in text:
        text = _replaced(text, ADDRESS, _addresses, is_meant, word)
    if "p_" in text:
        text = _replaced(text, PSEUDONYM, _whole, is_meant, word)
    return _replaced(text, NUMBER, _numbers, is_meant, word)


def has_handle(text: str) -> bool:
    """Return whether a text holds what may be a handle."""
    return replace_handles(text, lambda _handle: True, MASK) != text


@lru_cache(maxsize=10_000)
def mask_handles(text: str) -> str:
    """Replace what may be a handle in a text that is recorded or logged: a field's name."""
    return replace_handles(text, lambda _handle: True, MASK)


def unescape_json(text: str) -> str:
    r"""Replace `\u002b` and the like by their characters, to look for handles in JSON that is not decoded."""
    return ESCAPE.sub(lambda found: chr(int(found[1], 16)), text) if "\\u" in text else text


def canonical_handle(written: str) -> str:
    """Return a handle in its canonical form, also from a text around it: `tel:+14155550111`, `Ann <ann@example.com>`,
    `0014155550111`. A text without a handle, or with more than one handle, is returned in lower case.
    """
    return _only_handle(written) or normalize_handle(written)


def _only_handle(written: str) -> str | None:
    pattern = ADDRESS if "@" in written else NUMBER
    match = pattern.search(written)
    if match is None or not (BEFORE.fullmatch(written[: match.start()]) and AFTER.fullmatch(written[match.end() :])):
        return None
    forms = _addresses(match[0]) if pattern is ADDRESS else _numbers(match[0])
    whole = (0, len(match[0]))
    return next((handle for span, form in forms if span == whole and (handle := parse_handle(form))), None)


def _replaced(
    text: str,
    pattern: re.Pattern[str],
    candidates: Callable[[str], Iterator[tuple[Span, str]]],
    is_meant: Callable[[str], bool],
    word: str,
) -> str:
    def left(match: re.Match[str]) -> str:
        written, parts, done = match[0], [], 0
        for (begin, end), handle in candidates(written):
            if begin >= done and is_meant(handle):
                parts += [written[done:begin], word]
                done = end
        return "".join([*parts, written[done:]])

    return pattern.sub(left, text)


def _whole(written: str) -> Iterator[tuple[Span, str]]:
    yield (0, len(written)), written


def _addresses(written: str) -> Iterator[tuple[Span, str]]:
    begins = [0, *(match.end() for match in BEFORE_ADDRESS.finditer(written, 0, written.index("@")))]
    for begin in begins:
        yield (begin, len(written)), written[begin:]


def _numbers(written: str) -> Iterator[tuple[Span, str]]:
    """Yield the numbers that a run of digits may be, longest first for each beginning. Adjacent digits are never
    separated. A plus sign is where a number begins: `+1 415 555 0112` is not `+41 55 550 112` after a 1.
    """
    groups = [match.span() for match in re.finditer(r"\d+", written)]
    parts = ["".join(str(unicodedata.decimal(one)) for one in written[slice(*span)]) for span in groups]
    has_plus = written[0] in "+＋"
    for first, (begin, _) in enumerate(groups):
        if has_plus and 0 < sum(map(len, parts[:first])) < MIN_DIGITS:
            continue
        for last in range(min(len(groups), first + MAX_DIGITS + 2) - 1, first - 1, -1):
            span = (0 if first == 0 and has_plus else begin, groups[last][1])
            for digits in _digits(parts[first : last + 1]):
                if MIN_DIGITS <= len(digits) <= MAX_DIGITS:
                    yield span, f"+{digits}"


def _digits(parts: list[str]) -> Iterator[str]:
    whole = "".join(parts)
    yield whole
    if whole.startswith("00"):
        yield whole[2:]
    if "0" in parts[1:]:  # +44 (0)20 7946 0018
        yield parts[0] + "".join(part for part in parts[1:] if part != "0")
