"""Read JSON that a strict decoder refuses, token by token and without recursion.

A token is a string, a bracket, a comma, a colon or a bare word, so one pass in linear time handles any nesting. All
functions take and return UTF-8 bytes, and return text that needs no change as it is.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

# Deeper values become text: all later readers (json, dlt, SQL engines) have some limit.
MAX_DEPTH = 100
# Python reads integers of up to 4,300 digits, PostgreSQL numbers of up to 131,072.
MAX_DIGITS = 400

_TOKEN = re.compile(rb'([ \t\r\n\f\v\0]*+)("[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},:]|[^\s"\[\]{},:\0]++)', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n\f\v\0]*+")
_COLON = re.compile(rb"\s*+:")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_MAY_BE_TOO_LARGE = re.compile(rb"[0-9]{%d}|[0-9][eE]\+?[0-9]{3}" % MAX_DIGITS)
# The bytes between brackets, and runs of brackets with them: few matches for a value that nests very deep.
_BETWEEN = rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+'
_UP_TO_BRACKET = re.compile(_BETWEEN, re.DOTALL)
_BRACKETS = re.compile(rb"([\[{]++|[\]}]++)" + _BETWEEN, re.DOTALL)
_IN_STRING = re.compile(rb'[\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|\\(.)', re.DOTALL)
_WORDS = {
    b"true": b"true", b"false": b"false", b"null": b"null", b"True": b"true", b"False": b"false",
    **dict.fromkeys((b"NaN", b"nan", b"Infinity", b"-Infinity", b"+Infinity", b"inf", b"-inf", b"None", b"undefined",
                     b"nil", b"NULL"), b"null"),
}  # fmt: skip
_OPEN, _CLOSE = b"[{", b"]}"
_MATES = {b"]": b"[", b"}": b"{"}


@dataclass(frozen=True)
class SplitAnswer:
    """The parts of an answer, as text: the `envelope` with null in place of `data`, `data`, and its elements.

    `rows` is null if `data` is not a list.
    """

    envelope: bytes
    data: bytes | None
    rows: list[bytes] | None


def _skip(text: bytes, at: int, levels: int) -> int:
    """Return where the innermost `levels` of the brackets that are open at `at` have been closed; 0 if they are not.

    Of which kind a bracket is does not matter.
    """
    end = _UP_TO_BRACKET.match(text, at).end()  # type: ignore[union-attr]
    for match in _BRACKETS.finditer(text, end):
        brackets = match[1]
        if match.start() != end:  # a string without an end
            break
        if brackets[:1] in _OPEN:
            levels += len(brackets)
        elif len(brackets) >= levels:
            return match.start() + levels
        else:
            levels -= len(brackets)
        end = match.end()
    return 0


def rewrite_json(text: bytes, member_depth: int = 1) -> bytes:
    """Rewrite a value as strict JSON, if possible. The result may still be invalid.

    Control characters in strings are escaped, trailing commas removed, NaN and the like become null, other bare words
    text. Members at `member_depth` (0: the value itself, 1: the fields of an object) that nest deeper than `MAX_DEPTH`
    become text.
    """
    out: list[bytes] = []
    end = depth = start = place = 0
    last = b""
    tokens = _TOKEN.finditer(text)
    while (token := next(tokens, None)) is not None:
        if token.start() != end:
            return text
        space, word = token[1], token[2]
        end = token.end()
        out.append(space if not space.strip(b" \t\r\n") else b" ")
        if word in _CLOSE:
            if last == b",":
                del out[-2]
            elif last == b":":
                out.append(b"null")
            depth -= 1
        elif word == b"," and last == b":":
            out.append(b"null")
        elif word in _OPEN:
            if depth == member_depth:
                start, place = token.start(2), len(out)
            depth += 1
            if depth > MAX_DEPTH:
                end = _skip(text, end, depth - member_depth)
                if not end:
                    return text
                out[place:] = [msgspec.json.encode(text[start:end].decode("utf-8", "replace"))]
                depth, last, tokens = member_depth, b"]", _TOKEN.finditer(text, end)
                continue
        out.append(_rewrite(word))
        last = word
    return b"".join(out) + text[end:]


def _rewrite(word: bytes) -> bytes:
    if word[:1] == b'"':
        return _IN_STRING.sub(_escape, word)
    if word in b"[]{},:":
        return word
    literal = _WORDS.get(word)
    if literal is not None:
        return literal
    if _NUMBER.fullmatch(word) and len(word) <= MAX_DIGITS and math.isfinite(float(word)):
        return word
    return msgspec.json.encode(word.decode("utf-8", "replace"))


def _escape(match: re.Match[bytes]) -> bytes:
    if match[1] is not None:
        return b"'" if match[1] == b"'" else b"\\\\" + _IN_STRING.sub(_escape, match[1])
    return match[0] if match[0][:1] == b"\\" else b"\\u%04x" % match[0][0]


def is_storable(value: bytes) -> bool:
    """Return whether a JSON value certainly is not nested too deep, and has no number that is too large."""
    brackets = 0 if len(value) <= MAX_DEPTH else value.count(b"[") + value.count(b"{")
    return brackets <= MAX_DEPTH and not _MAY_BE_TOO_LARGE.search(value)


def split_answer(body: bytes) -> SplitAnswer:
    """Split an answer into its envelope and its rows, without parsing the rows.

    Raises `msgspec.DecodeError` if it is cut off, or not a JSON object.
    """
    stack: list[bytes] = []
    end = 0
    key = data_at = row_at = None
    data: tuple[int, int] | None = None
    rows: list[bytes] = []
    tokens = _TOKEN.finditer(body)
    while (token := next(tokens, None)) is not None:
        word, start = token[2], token.start(2)
        if token.start() != end or (end and not stack):
            raise msgspec.DecodeError("not JSON")
        if not stack and word != b"{":
            raise msgspec.DecodeError("not an object")
        if len(stack) == 1 and word == b",":
            key = None
        elif len(stack) == 1 and word[:1] == b'"' and _COLON.match(body, token.end()):
            key = word
        elif len(stack) == 1 and key == b'"data"' and word not in b":}":
            data_at, rows, row_at = start, [], None
        elif len(stack) == 2 and data_at is not None and word in b",]":
            if row_at is not None:
                rows.append(body[row_at:end])
            row_at = None
        elif len(stack) == 2 and data_at is not None and row_at is None:
            row_at = start
        end = token.end()
        if word in _OPEN and len(stack) > MAX_DEPTH:
            if not (end := _skip(body, end, 1)):
                raise msgspec.DecodeError("cut off")
            tokens = _TOKEN.finditer(body, end)
        elif word in _OPEN:
            stack.append(word)
        elif word in _CLOSE and (not stack or stack.pop() != _MATES[word]):
            raise msgspec.DecodeError("brackets do not match")
        if data_at is not None and len(stack) == 1:
            data, data_at = (data_at, end), None
    if stack or _SPACE.fullmatch(body, end) is None:
        raise msgspec.DecodeError("cut off")
    if data is None:
        return SplitAnswer(rewrite_json(body), None, None)
    text = body[slice(*data)]
    envelope = body[: data[0]] + b"null" + body[data[1] :]
    return SplitAnswer(rewrite_json(envelope), text, rows if text[:1] == b"[" else None)


_MEMBERS = rb'(?:\s*+"\w++"\s*+:\s*+(?:"[^"\\]*+"|[\w.+-]++)\s*+%s)*'
_HEAD = re.compile(rb"\s*\{" + _MEMBERS % b"," + rb'\s*"data"\s*:\s*(\[)')
_TAIL = re.compile(rb"\]\s*(?:,\s*" + _MEMBERS % b",?" + rb")?\}\s*\Z")
_ROW_ENDS = re.compile(rb"\s*(?:,|\Z)")
_BETWEEN_ROWS = re.compile(rb"[\s,]*+")
_NEXT_ROW = re.compile(rb",\s*(?=\{)")
# How often a list may be scanned, on average, for the rows after one without an end; and the maximum of bytes.
_SCANS, _MOST_SCANNED = 20, 20_000_000


def split_broken_answer(body: bytes, is_row: Callable[[bytes], bool]) -> SplitAnswer:
    """Split an answer with a row that has a quote or a bracket too many or too few.

    The text between readable rows becomes one element. Raises `msgspec.DecodeError` if the envelope is not complete.
    """
    head, tail = _HEAD.match(body), _TAIL.search(body)
    # The envelope has `has_more`; an answer that was cut off after a list within a row has not.
    if not head or not tail or b'"has_more"' not in body[: head.end()] + body[tail.start() :]:
        raise msgspec.DecodeError("not JSON")
    inside = body[head.end() : tail.start()]
    rows: list[bytes] = []
    at, skipped_at, bytes_left = 0, -1, len(inside) + min(_SCANS * len(inside), _MOST_SCANNED)
    while (at := _BETWEEN_ROWS.match(inside, at).end()) < len(inside):  # type: ignore[union-attr]
        end, scanned = _value_end(inside, at)
        bytes_left -= scanned
        if bytes_left < 0:
            raise msgspec.DecodeError("too many rows without an end")
        if end and _ROW_ENDS.match(inside, end) and is_row(inside[at:end]):
            if skipped_at >= 0:
                rows.append(inside[skipped_at:at].rstrip(b", \t\r\n"))
            rows.append(inside[at:end])
            at, skipped_at = end, -1
            continue
        skipped_at = at if skipped_at < 0 else skipped_at
        further = _NEXT_ROW.search(inside, at)
        at = further.end() if further else len(inside)
    if skipped_at >= 0:
        rows.append(inside[skipped_at:].rstrip())
    return SplitAnswer(body[: head.start(1)] + b"null" + body[tail.start() + 1 :], inside, rows)


def _value_end(text: bytes, at: int) -> tuple[int, int]:
    """Return the end of the value that begins at `at`, 0 without an end; and how many bytes were scanned."""
    stack: list[bytes] = []
    end = at
    tokens = _TOKEN.finditer(text, at)
    while (token := next(tokens, None)) is not None:
        word = token[2]
        if token.start() != end:
            break
        end = token.end()
        if word in _OPEN and len(stack) > MAX_DEPTH:
            if not (end := _skip(text, end, 1)):
                return 0, len(text) - at
            tokens = _TOKEN.finditer(text, end)
        elif word in _OPEN:
            stack.append(word)
        elif word in _CLOSE and (not stack or stack.pop() != _MATES[word]):
            break
        if not stack:
            return end, end - at
    return 0, end - at


# -- links

# Replaces a link that is not stored.
NO_LINK = b"[link]"
_IN_LINK = rb'(?:[^\s"\\]|\\*/|\\u[0-9a-fA-F]{4})*+'
# Without its scheme, which is found by looking back: a pattern would try each letter of a text without spaces.
_LINK = re.compile(rb"(?::|\\u003[aA])(?:\\*/|\\u002[fF]){2}" + _IN_LINK)
_NOT_FIRST = string.digits.encode() + b"+.-"
_IN_SCHEME = string.ascii_letters.encode() + _NOT_FIRST
_NAMES_LINK = re.compile(rb"(?i)(?:ur[il]|href|link|src)s?\"$")
_QUERY = re.compile(rb"[?@#]|\\u003[fF]|\\u0040|\\u0023")
# Links in texts that people write, and in the caller's metadata, are stored.
_OWN_TEXTS = frozenset({b'"text"', b'"metadata"'})


def remove_links(text: bytes, *, of_attachment: bool = False) -> bytes:
    """Return JSON without links that may be signed.

    Removes all links in and below `attachments` (everywhere with `of_attachment`), elsewhere those with a query. Text
    that is not JSON loses all links.
    """
    if not (_LINK.search(text) or (_names_link(text) and (of_attachment or b"attachments" in text))):
        return text
    out: list[bytes] = []
    end = 0
    key = b""
    # For each open bracket: whether all links are removed, whether its strings are links by name, whether links stay.
    stack = [(of_attachment, False, False)]
    for token in _TOKEN.finditer(text):
        if token.start() != end:
            return _replace_links(text)
        word = token[2]
        end = token.end()
        in_attachment, is_link, is_own_text = stack[-1]
        in_attachment = in_attachment or key == b'"attachments"'
        is_link = in_attachment and (is_link or bool(_NAMES_LINK.search(key)))
        is_own_text = not in_attachment and (is_own_text or key in _OWN_TEXTS)
        if word in _OPEN:
            stack.append((in_attachment, is_link, is_own_text))
            key = b""
        elif word in _CLOSE:
            if len(stack) > 1:
                stack.pop()
            key = b""
        elif word == b",":
            key = b""
        elif word[:1] == b'"' and _COLON.match(text, end):
            key = word
        elif word[:1] == b'"':
            if is_link:
                word = b'"%s"' % NO_LINK
            elif in_attachment:
                word = _replace_links(word)
            elif not is_own_text:
                word = _replace_links(word, only_with_query=True)
        out += (token[1], word)
    rest = text[end:]
    return b"".join(out) + _replace_links(rest)


def _names_link(text: bytes) -> bool:
    return any(name in text.lower() for name in (b"url", b"uri", b"href", b"link", b"src"))


def _replace_links(text: bytes, *, only_with_query: bool = False) -> bytes:
    """Replace links in JSON, or all of those with a query. An escape before a link stays whole."""
    out: list[bytes] = []
    end = 0
    for match in _LINK.finditer(text):
        begin = _find_scheme(text[end : match.start()], is_escaped=match[0][:1] == b"\\") + end
        link = text[begin : match.end()]
        out += (text[end:begin], NO_LINK if not only_with_query or _QUERY.search(link) else link)
        end = match.end()
    return b"".join(out) + text[end:]


def _find_scheme(before: bytes, *, is_escaped: bool) -> int:
    """Return where the scheme of a link begins in what is before its colon, or its escape of the colon."""
    if is_escaped:
        before = before.rstrip(b"\\")  # the link is in JSON in a string of JSON
    head = before.rstrip(_IN_SCHEME)
    scheme = before[len(head) :]
    if (len(head) - len(head.rstrip(b"\\"))) % 2:  # it begins with the rest of an escape: \n, \u00e9
        scheme = scheme[5 if scheme[:1] == b"u" else 1 :]
    return len(before) - len(scheme.lstrip(_NOT_FIRST))
