"""Read the CSV files that people write by hand or save from a spreadsheet.

Deviations with only one meaning are accepted: column names in any case, a byte order mark, semicolons, tabs or bars
instead of commas, the `sep=` line of spreadsheets, empty rows, further columns. Ambiguous files are refused with their
line.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from msgbubbles.handles import strip_invisible

from .errors import InputFileError
from .text import escape

DELIMITERS = ",;\t|"


def read_text(path: Path) -> str:
    """Read UTF-8 text. Raises `InputFileError`."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputFileError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputFileError(f"{path} is not UTF-8 text. Save it as UTF-8.")
    return text


def _refuse(message: str) -> None:
    raise InputFileError(message)


def read_csv(
    path: Path, columns: Collection[str], required: Collection[str] = (), refuse: Callable[[str], None] = _refuse
) -> list[tuple[int, dict[str, str]]]:
    """Read the rows that are not empty, each with its first line.

    Names of columns are folded; those of `columns` must not occur twice. Raises `InputFileError` without any value; a
    row with more fields than columns is left out if `refuse` does not raise.
    """
    text = read_text(path)
    # Spreadsheets name the delimiter in a separate line.
    declaration = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)
    text, first_line = (text[declaration.end() :], 2) if declaration else (text, 1)
    reader = csv.reader(
        io.StringIO(text, newline=""), strict=True, skipinitialspace=True, delimiter=_detect_delimiter(text, columns)
    )
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] = []
    count = 0
    while True:
        line = first_line + reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error:
            raise InputFileError(
                f"{path}:{line} is not valid CSV. Quote texts that contain commas or line breaks."
            ) from None
        if fields is not None and not any(field.strip() for field in fields):
            continue
        if not header:
            header = [fold_column(name) for name in fields or ()]
            check_columns(header, columns, f"{path}:{line}")
            if missing := {*required}.difference(header):
                raise InputFileError(f"{path}:{line}: a column is missing: {min(missing)}. Name it in the first line.")
        elif fields is not None:
            count += 1
            if any(field.strip() for field in fields[len(header) :]):
                refuse(
                    f"{path}:{line}: row {count} has more fields than columns. Quote texts that contain "
                    "commas, such as addresses."
                )
            else:
                rows.append((line, dict(zip(header, fields, strict=False))))
        if fields is None:
            return rows


def _detect_delimiter(text: str, columns: Collection[str]) -> str:
    """Return the delimiter with which the first line has the most column names; by default the comma."""
    header = next((line for line in text.splitlines() if line.strip(DELIMITERS + " ")), "")

    def count_columns(delimiter: str) -> int:
        return len({fold_column(name.strip(' "')) for name in header.split(delimiter)}.intersection(columns))

    return max(DELIMITERS, key=count_columns)


def fold_column(name: object) -> str:
    """Return the canonical name of a column: `from_handle` for `From Handle`."""
    return re.sub(r"[\s_-]+", "_", strip_invisible(str(name)).casefold())


def check_columns(names: Iterable[object], columns: Collection[str], where: str, *, every: bool = False) -> None:
    """Raise `InputFileError` if one of `columns` is repeated in any spelling, or with `every`, any other name."""
    counts = Counter(folded if (folded := fold_column(name)) in columns else str(name) for name in names)
    for name, count in counts.items():
        if count > 1 and (every or name in columns):
            raise InputFileError(f'{where}: "{escape(name)}" occurs {count} times. Remove all but one.')
