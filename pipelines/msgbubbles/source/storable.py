"""Replace values that some destination cannot store, so that one of them does not fail a load.

PostgreSQL stores no NUL character, and JSON only up to some depth and size of numbers; drivers read back even less. The
same is stored everywhere, because the tables of all destinations have the same rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from msgbubbles.lenient import MAX_DEPTH, MAX_DIGITS

from .lazy_pyarrow import pa, pc

REPLACEMENT = "\ufffd"
# JSON texts that need a closer look. RE2 allows no count above 1,000.
_ODD = rf"\\u(?:0000|[dD][89a-fA-F])|[0-9]{{{MAX_DIGITS}}}|[0-9][eE][+-]?[0-9]{{4}}|NaN|Infinity|\x00"
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|-?Infinity|NaN|[\[{]|[\]}]', re.DOTALL)
# A pair of surrogates, what no text holds, or another escape, in this order.
_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u(?:0000|[dD][89a-fA-F]..)|\x00)|\\.", re.DOTALL)
_LONG = re.compile(rf"[0-9]{{{MAX_DIGITS}}}|[eE][+-]?[0-9]{{4}}")


def storable(table: pa.Table, json_columns: Iterable[str]) -> tuple[pa.Table, list[bool]]:
    """Replace what some destination cannot store. Returns the table, and for each row whether it has changed; an empty
    list where none has.

    In texts, NUL becomes U+FFFD. In JSON, so do NUL and halves of surrogate pairs; numbers of more than 400 digits,
    NaN and Infinity become texts; and a value nested more than 100 levels deep becomes one text.
    """
    changed: list[bool] = []
    of_json = frozenset(json_columns)
    for place, field in enumerate(table.schema):
        if not pa.types.is_string(field.type):
            continue
        column = table.column(place)
        if field.name in of_json:
            levels = pc.add(pc.count_substring(column, "["), pc.count_substring(column, "{"))
            odd = pc.or_(pc.match_substring_regex(column, _ODD), pc.greater(levels, MAX_DEPTH))
        else:
            odd = pc.match_substring(column, "\0")
        if not pc.any(odd).as_py():
            continue
        fit = storable_json if field.name in of_json else storable_text
        before = column.to_pylist()
        after = [value if value is None else fit(value) for value in before]
        differs = [one != other for one, other in zip(before, after, strict=True)]
        changed = [one or other for one, other in zip(changed or [False] * len(differs), differs, strict=True)]
        table = table.set_column(place, field, pa.array(after, field.type))
    return table, changed if any(changed) else []


def storable_text(text: str) -> str:
    """Replace what no text column holds."""
    return text.replace("\0", REPLACEMENT)


def storable_json(text: str) -> str:
    """Replace in a JSON text what some destination cannot store, or its driver cannot read back."""
    depth = 0

    def fit(token: re.Match[str]) -> str:
        nonlocal depth
        found = token[0]
        if found in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _TooDeepError
        elif found in "]}":
            depth -= 1
        elif found.startswith('"'):
            return _ESCAPE.sub(lambda match: r"\ufffd" if match[1] else match[0], found)
        elif found[-1] in "yN" or _LONG.search(found):
            return f'"{found}"'
        return found

    try:
        return _TOKEN.sub(fit, text)
    except _TooDeepError:
        return json.dumps(storable_text(text), ensure_ascii=False)


class _TooDeepError(Exception):
    pass
