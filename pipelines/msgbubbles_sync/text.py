"""Format numbers and spans of time for messages, and escape untrusted text for a terminal or a JSON file."""

from __future__ import annotations

import json
import math
import re
import unicodedata

# Letters that show nothing: fillers of Hangul, a blank of Braille, and the combining grapheme joiner.
BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f")
# Controls, formats such as direction marks, surrogates, private use, and separators of lines and paragraphs.
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
SPACES = frozenset(" \u3000")
JOINER = "\u200d"


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`, `2 deliveries`, `2 people`."""
    if noun == "person" and number != 1:
        return f"{number:,} people"
    plural = f"{noun.removesuffix('y')}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def format_span(seconds: float) -> str:
    """Return a span of time in the unit that suits it: `50 seconds`, `90 minutes`, `36 hours`, `3 days`."""
    if seconds < 60:
        return format_count(round(max(seconds, 0.0)), "second")
    if seconds < 2 * 3600:
        return format_count(round(seconds / 60), "minute")
    return (
        format_count(round(seconds / 3600), "hour")
        if seconds <= 48 * 3600
        else format_count(round(seconds / 86_400), "day")
    )


def estimate_minutes(requests: int, per_minute: int) -> int:
    """Return how many minutes requests wait for a rate limit (0: none); those of the first minute are sent at once."""
    return max(math.ceil(requests / per_minute) - 1, 0) if per_minute else 0


def escape(text: str) -> str:
    r"""Escape every character that is invisible, or moves or hides others: `\x1b`, `\u202e`.

    The result shows what the text holds: nothing that an approver reads can be overwritten, reversed, or longer than
    it looks. The joiner within an emoji stays.
    """
    return "".join(
        char if _is_visible(char, text[max(index - 1, 0) : index + 2]) else _escape(char)
        for index, char in enumerate(text)
    )


def quote(text: str) -> str:
    """Return an escaped text in quotation marks, which it cannot close itself."""
    return '"' + escape(text).replace('"', '\\"') + '"'


def escape_json(document: str) -> str:
    """Write such characters of a JSON document as JSON escapes; it decodes to the same value."""
    return re.sub(
        "[^\\x00-\\x7e]", lambda match: match[0] if _is_visible(match[0], "") else json.dumps(match[0])[1:-1], document
    )


def _is_visible(char: str, around: str) -> bool:
    if char == JOINER and len(around) == 3:
        return _is_symbol(around[0]) and _is_symbol(around[2])
    category = unicodedata.category(char)
    return category not in INVISIBLE and char not in BLANKS and (category != "Zs" or char in SPACES)


def _is_symbol(char: str) -> bool:
    return unicodedata.category(char) in ("So", "Sk") or char == "\ufe0f"


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
