"""Build an account whose handles, texts, titles and names are unique words, and search every file of a folder for them.

The search covers the bytes of each file and the contents of compressed and packed files.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from msgbubbles_sync.sandbox import Account, NewMessage

OURS = "+14155557001"
ANN, BEN, CARLA = "+14155558001", "ben.canary@example.com", "+14155558003"
PEOPLE = (ANN, BEN, CARLA)
KEY = "sk_test_canary_of_the_api_key"
PRIVACY_KEY = "canary of the privacy key, long enough for it"


def build_canary_account(now: datetime) -> tuple[Account, dict[str, list[str]]]:
    """Return the account, and its words by kind."""
    account = Account()
    account.add_number(OURS, "canary label")
    words = {
        "handles": [handle.removeprefix("+") for handle in (OURS, *PEOPLE)],
        "texts": [], "titles": ["canary title of the group", "canary label"], "files": [], "others": [],
    }  # fmt: skip
    at = now - timedelta(days=3)
    chats = [account.add_chat(OURS, person, at, chat_id=chat_id(number)) for number, person in enumerate(PEOPLE)]
    title = "canary title of the group"
    group = account.add_chat(OURS, "group:1", at, is_group=True, title=title, participants=PEOPLE, chat_id=chat_id(9))
    messages = []
    for number in range(40):
        person = PEOPLE[number % 3]
        inbound = number % 2 == 0
        is_group = number % 5 == 0
        text, name, note = f"canary text {number:03d}", f"canary file {number:03d}.pdf", f"canary note {number:03d}"
        words["texts"].append(text)
        words["files"].append(name)
        words["others"].append(note)
        messages.append(
            NewMessage(
                group if is_group else chats[number % 3],
                "inbound" if inbound else "outbound",
                text,
                at + timedelta(hours=number),
                "received" if inbound else "failed" if number % 7 == 0 else "sent",
                sender=person if inbound else OURS,
                metadata={"note": note},
                error={"code": "device_offline", "message": f"{note} to {person}"} if number % 7 == 0 else None,
                id=f"m{number:03d}",
                attachments=((name, f"application/pdf; name={name}", 100),),
            )
        )
    account.add_messages(messages)
    # The latest message of the group is ours.
    account.add_message(
        NewMessage(group, "outbound", "canary text 999", now - timedelta(hours=1), "sent", sender=OURS, id="m999")
    )
    words["texts"].append("canary text 999")
    words["others"].append("canary of an unknown field")
    return account, words


def chat_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def spellings(handle: str) -> list[str]:
    """Return the spellings of a number or an address that people and software use."""
    if "@" in handle:
        return [handle, handle.upper(), f"mailto:{handle.title()}", f"'{handle}'"]
    digits = handle.removeprefix("+")
    parts = digits[:1], digits[1:4], digits[4:7], digits[7:]
    return [
        handle, digits, f"00{digits}", f"tel:+{'-'.join(parts)}", f"+{' '.join(parts)}", f"sms:{'.'.join(parts)};x",
        f"+{parts[0]} ({parts[1]}) {parts[2]}-{parts[3]}", "+" + "\u00a0".join(parts), f"\u202a+{digits}\u202c",
        "＋" + "".join(chr(ord(digit) + 0xFEE0) for digit in digits),
    ]  # fmt: skip


def handles_in(text: str, *handles: str) -> list[str]:
    """Return the handles in a text, in any spelling."""
    plain = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(one for one in plain if one.isalnum() or one in "@")
    wanted = {one: "".join(part for part in one if part.isalnum() or part == "@") for one in handles}
    return [one for one, sought in wanted.items() if sought in plain]


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (text for pair in value.items() for one in pair for text in texts_in(one))
    elif isinstance(value, list | tuple | set):
        yield from (text for one in value for text in texts_in(one))
    else:
        yield str(value)


def quote_everywhere(row: dict[str, Any], handles: Iterator[str], skip: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Insert handles into every text, possible text and field name of an API row.

    Args:
        row: The row.
        handles: The handles to insert, one after the other.
        skip: Names of fields to leave unchanged. Timestamps are always left unchanged.
    """
    quoted: dict[str, Any] = {}
    for name, value in row.items():
        if name in skip or name.endswith("_at") or not (value is None or isinstance(value, str | dict | list)):
            quoted[name] = value
        elif name == "attachments":
            quoted[name] = [quote_everywhere(file, handles, frozenset({"message_id", "url"})) for file in row[name]]
        elif name in ("metadata", "error", "channels"):
            quoted[name] = {next(handles): next(handles), "deep": [{"code": next(handles)}, next(handles)]}
        else:
            # An id of digits only must stay an id.
            before = value or ("x" if name == "reply_to" else "")
            quoted[name] = f"{before} {next(handles)}".strip()
    return quoted | {next(handles): {next(handles): 1}, "unknown": [next(handles)]}


def find_words(
    folder: Path, words: Iterable[str], skip: Iterable[str] = (), skip_paths: str = r"\.duckdb_extension$"
) -> dict[str, list[str]]:
    """Return by word the files that contain it, as paths in the folder.

    Files named in `skip` are not read, and none whose path in the folder matches `skip_paths`: by default the links to
    DuckDB's extensions, which are programs of many megabytes.
    """
    wanted = {word: word.encode() for word in words}
    found: dict[str, list[str]] = {}
    # Other tests remove folders of the server meanwhile, which does not matter here.
    folders = os.walk(folder, followlinks=True)  # codespell:ignore walk
    for path in sorted(Path(parent, name) for parent, _, names in folders for name in names):
        name = str(path.relative_to(folder))
        if path.name in skip or re.search(skip_paths, name) or not path.is_file():
            continue
        for content in _contents(path):
            for word, sought in wanted.items():
                if sought in content and name not in found.get(word, []):
                    found.setdefault(word, []).append(name)
    return found


def _contents(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    if content[8:12] == b"DUCK":
        yield from _values(path)
    if content[:4] == b"PAR1":
        query = "SELECT string_agg(COLUMNS(*)::VARCHAR, '\n') FROM read_parquet(?)"
        rows = duckdb.execute(query, [str(path)]).fetchall()
        yield repr(rows).encode()


def _values(path: Path) -> Iterator[bytes]:
    """Return every value of a database, whose compression may hide the bytes of texts."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.duckdb")
        shutil.copy(path, copy)
        wal = path.with_name(f"{path.name}.wal")
        if wal.exists():
            shutil.copy(wal, copy.with_name(f"{copy.name}.wal"))
        with duckdb.connect(str(copy)) as connection:
            tables = connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
            for schema, table in tables:
                rows = connection.execute(f'SELECT COLUMNS(*)::VARCHAR FROM "{schema}"."{table}"').fetchall()
                yield "\n".join(str(value) for row in rows for value in row).encode()
                if table == "_dlt_pipeline_state":
                    states = connection.execute(f'SELECT state FROM "{schema}"."{table}"').fetchall()
                    yield from (_unpacked(state) for (state,) in states)


def _unpacked(state: str) -> bytes:
    import base64

    return zlib.decompress(base64.b64decode(state))


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
