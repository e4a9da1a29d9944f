"""An account in which every handle, text, title and name is a word that is nowhere else, and a search for such words in
every file of a folder, byte by byte, and in what files hold in packed form.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
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


def account_of_canaries(now: datetime) -> tuple[Account, dict[str, list[str]]]:
    """The account, and its words by kind."""
    account = Account()
    account.add_number(OURS, "canary label")
    words = {
        "handles": [one.removeprefix("+") for one in (OURS, *PEOPLE)],
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
    # Nobody of the account's people writes last in the group.
    account.add_message(
        NewMessage(group, "outbound", "canary text 999", now - timedelta(hours=1), "sent", sender=OURS, id="m999")
    )
    words["texts"].append("canary text 999")
    words["others"].append("canary of an unknown field")
    return account, words


def chat_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def spellings(handle: str) -> list[str]:
    """A number or an address as people and software write it."""
    if "@" in handle:
        return [handle, handle.upper(), f"mailto:{handle.title()}", f"'{handle}'"]
    digits = handle.removeprefix("+")
    parts = digits[:1], digits[1:4], digits[4:7], digits[7:]
    return [
        handle, digits, f"00{digits}", f"tel:+{'-'.join(parts)}", f"+{' '.join(parts)}", f"sms:{'.'.join(parts)};x",
        f"+{parts[0]} ({parts[1]}) {parts[2]}-{parts[3]}", "+" + "\u00a0".join(parts), f"\u202a+{digits}\u202c",
        "＋" + "".join(chr(ord(one) + 0xFEE0) for one in digits),
    ]  # fmt: skip


def quoted_everywhere(row: dict[str, Any], written: Iterator[str], but: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Quote handles, one after the other, in each text of a row of the API, in what may be a text, and as names of
    fields; fields of the names in `but`, and times, stay.
    """
    quoted: dict[str, Any] = {}
    for name, value in row.items():
        if name in but or name.endswith("_at") or not (value is None or isinstance(value, str | dict | list)):
            quoted[name] = value
        elif name == "attachments":
            quoted[name] = [quoted_everywhere(one, written, frozenset({"message_id", "url"})) for one in row[name]]
        elif name in ("metadata", "error", "channels"):
            quoted[name] = {next(written): next(written), "deep": [{"code": next(written)}, next(written)]}
        else:
            # An id of digits alone is an id.
            before = value or ("x" if name == "reply_to" else "")
            quoted[name] = f"{before} {next(written)}".strip()
    return quoted | {next(written): {next(written): 1}, "unknown": [next(written)]}


def found_in(folder: Path, words: Iterable[str], but: Iterable[str] = ()) -> dict[str, list[str]]:
    """By word, the files that hold it, as paths in the folder; files of the names in `but` are not looked into."""
    wanted = {word: word.encode() for word in words}
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in but:
            continue
        for content in _contents(path):
            for word, sought in wanted.items():
                name = str(path.relative_to(folder))
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
    """Every value of a database: it may pack texts so that their bytes are not found."""
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
