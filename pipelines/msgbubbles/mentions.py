"""Find and replace handles within other text, in the spellings that people and software use.

`+1 (415) 555-0111`, `tel:+14155550111`, `0014155550111`, `Ben@Example.com`, and their pseudonyms. This includes the
names of fields: an API may send an object whose keys are handles.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache

from .handles import normalize_handle, parse_handle

MASK = "[handle]"
MIN_DIGITS, MAX_DIGITS = 7, 15
# Characters between the digits of one number, four in a row at most: spaces, brackets, dashes and invisible ones.
BETWEEN = r"\s().\-/~·\u00ad\u2010-\u2015\u2212\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
NUMBER = re.compile(rf"(?:[+＋][{BETWEEN}]{{0,4}})?\d(?:[{BETWEEN}]{{0,4}}\d){{{MIN_DIGITS - 1},}}")
# Bounded, because a text may have a megabyte without an @.
ADDRESS = re.compile(r"[\w.+-][\w.!#$%&'*+/=?^`{|}~-]{0,63}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
# An address may begin after one of these, as in `to=ben@example.com`, but not after a dot or a plus sign.
BEFORE_ADDRESS = re.compile(r"[!#$%&'*/=?^`{|}~]+")
PSEUDONYM = re.compile(r"\bp_[a-z2-7]{24}\b")
# Text around a handle that does not make it another one: a name, a scheme, brackets, quotes, parameters.
AROUND = rf"[{BETWEEN}'\"]*"
BEFORE = re.compile(
    rf"(?:[^<>@\d]*<)?{AROUND}(?:(?:tel|smsto|sms|mms|mailto|imessage|facetime|whatsapp|sips?):/*)?{AROUND}", re.I
)
AFTER = re.compile(rf"{AROUND}(?:[;?][^<>@]*)?>?{AROUND}")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")

Span = tuple[int, int]


def replace_handles(text: str, is_meant: Callable[[str], bool], word: str) -> str:
    """Replace every handle for which `is_meant` by `word`.

    `is_meant` is called with a number (+ and digits only), an address or a pseudonym as written.
    """
    if "@" in text:
        text = _replace(text, ADDRESS, _find_addresses, is_meant, word)
    if "p_" in text:
        text = _replace(text, PSEUDONYM, lambda written: iter([((0, len(written)), written)]), is_meant, word)
    return _replace(text, NUMBER, _find_numbers, is_meant, word)


@lru_cache(maxsize=10_000)
def mask_handles(text: str) -> str:
    """Replace everything that may be a handle, in a field's name for example."""
    return replace_handles(text, lambda _handle: True, MASK)


def has_handle(text: str) -> bool:
    """Return whether a text has what may be a handle."""
    return replace_handles(text, lambda _handle: True, MASK) != text


def unescape_json(text: str) -> str:
    r"""Replace `\u002b` and the like by their characters, to find handles in JSON that is not decoded."""
    return ESCAPE.sub(lambda match: chr(int(match[1], 16)), text) if "\\u" in text else text


def canonical_handle(written: str) -> str:
    """Return the canonical form of the only handle in a text, or else the text in lower case.

    The text may be `tel:+14155550111`, `Ann <ann@example.com>` or `0014155550111`.
    """
    return _only_handle(written) or normalize_handle(written)


def _only_handle(written: str) -> str | None:
    pattern = ADDRESS if "@" in written else NUMBER
    match = pattern.search(written)
    if match is None or not (BEFORE.fullmatch(written[: match.start()]) and AFTER.fullmatch(written[match.end() :])):
        return None
    forms = _find_addresses(match[0]) if pattern is ADDRESS else _find_numbers(match[0])
    whole = (0, len(match[0]))
    return next((handle for span, form in forms if span == whole and (handle := parse_handle(form))), None)


def _replace(
    text: str,
    pattern: re.Pattern[str],
    candidates: Callable[[str], Iterator[tuple[Span, str]]],
    is_meant: Callable[[str], bool],
    word: str,
) -> str:
    def replace_in(match: re.Match[str]) -> str:
        written, parts, done = match[0], [], 0
        for (begin, end), handle in candidates(written):
            if begin >= done and is_meant(handle):
                parts += [written[done:begin], word]
                done = end
        return "".join([*parts, written[done:]])

    return pattern.sub(replace_in, text)


def _find_addresses(written: str) -> Iterator[tuple[Span, str]]:
    begins = [0, *(match.end() for match in BEFORE_ADDRESS.finditer(written, 0, written.index("@")))]
    for begin in begins:
        yield (begin, len(written)), written[begin:]


def _find_numbers(written: str) -> Iterator[tuple[Span, str]]:
    """Yield the numbers that a run of digits may be, longest first for each beginning.

    Adjacent digits are never separated. A number begins at its plus sign: `+1 415 555 0112` is not `+41 55 550 112`
    after a 1.
    """
    groups = [match.span() for match in re.finditer(r"\d+", written)]
    parts = ["".join(str(unicodedata.decimal(digit)) for digit in written[slice(*span)]) for span in groups]
    has_plus = written[0] in "+＋"
    for first, (begin, _) in enumerate(groups):
        if has_plus and 0 < sum(map(len, parts[: min(first, MIN_DIGITS)])) < MIN_DIGITS:  # each part has a digit
            continue
        for last in range(min(len(groups), first + MAX_DIGITS + 2) - 1, first - 1, -1):
            span = (0 if first == 0 and has_plus else begin, groups[last][1])
            for digits in _read_digits(parts[first : last + 1]):
                if MIN_DIGITS <= len(digits) <= MAX_DIGITS:
                    yield span, f"+{digits}"


def _read_digits(parts: list[str]) -> Iterator[str]:
    whole = "".join(parts)
    yield whole
    if whole.startswith("00"):
        yield whole[2:]
    if "0" in parts[1:]:  # +44 (0)20 7946 0018
        yield parts[0] + "".join(part for part in parts[1:] if part != "0")
