"""Texts of others, as they may be shown on a screen."""

from __future__ import annotations

import re
import unicodedata

# Letters by Unicode that show nothing: fillers of Hangul, and a blank of Braille.
BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f")
# Controls, formats as direction marks, halves of characters, private ones, and what breaks a line.
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
SPACES = frozenset(" \u3000")
JOINER = "\u200d"


def escaped(text: str) -> str:
    """Return a text with every character that moves others, hides or cannot be seen as its escape: `\\x1b`, `\\u202e`.

    What is left is what the text shows: nothing that an approver reads can be written over, turned around or be of
    another length than it looks. The joiner within one emoji stays.
    """
    return "".join(one if _is_seen(one, text[max(at - 1, 0) : at + 2]) else _escape(one) for at, one in enumerate(text))


def quoted(text: str) -> str:
    """Return a text between quotation marks, which it cannot end itself."""
    return '"' + escaped(text).replace('"', '\\"') + '"'


def escaped_json(document: str) -> str:
    """Return a JSON document that decodes to the same, with such characters as JSON's own escapes."""
    return re.sub(
        "[^\\x00-\\x7e]",
        lambda found: found[0] if _is_seen(found[0], "") else "".join(f"\\u{unit:04x}" for unit in _utf16(found[0])),
        document,
    )


def _is_seen(one: str, around: str) -> bool:
    if one == JOINER and len(around) == 3:
        return _is_symbol(around[0]) and _is_symbol(around[2])
    category = unicodedata.category(one)
    return category not in UNSEEN and one not in BLANKS and (category != "Zs" or one in SPACES)


def _is_symbol(one: str) -> bool:
    return unicodedata.category(one) in ("So", "Sk") or one == "\ufe0f"


def _escape(one: str) -> str:
    code = ord(one)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _utf16(one: str) -> list[int]:
    data = one.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
