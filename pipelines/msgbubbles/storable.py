"""Replace values that some destination cannot store, so that a single value cannot fail a load.

PostgreSQL stores no NUL character, and limits the depth and the numbers of JSON; drivers read back even less. All
destinations get the same replacements, because their tables have the same rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from .lazy_pyarrow import pa, pc
from .lenient import MAX_DEPTH, MAX_DIGITS

REPLACEMENT = "\ufffd"
# Matches JSON texts that need a closer look. RE2 allows no count above 1,000.
_ODD = rf"\\u(?:0000|[dD][89a-fA-F])|[0-9]{{{MAX_DIGITS}}}|[0-9][eE][+-]?[0-9]{{4}}|NaN|Infinity|\x00"
# Without backtracking, which would take a hundred times the memory of a long text.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?[0-9][0-9.eE+-]*|-?Infinity|NaN|[\[{]|[\]}]', re.DOTALL)
# A pair of surrogates, a character that cannot be stored, or another escape, in this order.
_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u(?:0000|[dD][89a-fA-F]..)|\x00)|\\.", re.DOTALL)
_LONG = re.compile(rf"[0-9]{{{MAX_DIGITS}}}|[eE][+-]?[0-9]{{4}}")


def replace_unstorable(table: pa.Table, json_columns: Collection[str]) -> tuple[pa.Table, list[bool]]:
    """Replace values that some destination cannot store. Return the table, and which rows have changed ([]: none).

    In texts, NUL becomes U+FFFD. In JSON, so do NUL and halves of surrogate pairs; numbers of more than 400 digits,
    NaN and Infinity become texts; and a value nested more than 100 levels deep becomes one text.
    """
    changed: list[bool] = []
    for index, field in enumerate(table.schema):
        if not pa.types.is_string(field.type):
            continue
        column, is_json = table.column(index), field.name in json_columns
        if is_json:
            levels = pc.add(pc.count_substring(column, "["), pc.count_substring(column, "{"))
            odd = pc.or_(pc.match_substring_regex(column, _ODD), pc.greater(levels, MAX_DEPTH))
        else:
            odd = pc.match_substring(column, "\0")
        if not pc.any(odd).as_py():
            continue
        replace = replace_in_json if is_json else replace_in_text
        before = column.to_pylist()
        after = [value if value is None else replace(value) for value in before]
        changed = changed or [False] * len(before)
        changed = [was or old != new for was, old, new in zip(changed, before, after, strict=True)]
        table = table.set_column(index, field, pa.array(after, field.type))
    return table, changed if any(changed) else []


def replace_in_text(text: str) -> str:
    return text.replace("\0", REPLACEMENT)


def replace_in_json(text: str) -> str:
    """Replace the parts of a JSON text that some destination cannot store, or its driver cannot read back."""
    depth = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal depth
        word = match[0]
        if word in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _TooDeepError
        elif word in "]}":
            depth -= 1
        elif word.startswith('"'):
            return _ESCAPE.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], word)
        elif word[-1] in "yN" or _LONG.search(word):
            return f'"{word}"'
        return word

    try:
        return _TOKEN.sub(replace, text)
    except _TooDeepError:
        return json.dumps(replace_in_text(text), ensure_ascii=False)


class _TooDeepError(Exception):
    pass
