"""Valid pages with many rows that are mutated at random.

Every run ends with status 0 or 3, in bounded time, requests and memory. Untouched rows are loaded as the API shows
them; a mutated row is loaded, or is in `rejected_rows`. The id of a row determines its mutation, so it is the same each
time the row is read.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import duckdb
import msgspec
import psycopg2.extras
import pytest

from helpers.job import Job
from helpers.warehouse_rows import expected
from helpers.world import SINCE_1970, World
from msgbubbles.source.run import Run
from msgbubbles_sync.sandbox import Knobs, Truth, seed
from msgbubbles_sync.sandbox.listing import truth

NewJob = Callable[..., Job]
Row = dict[str, Any]
# Mutates a row in place, or gives what is shown in its place: another value, or text that is put there to the letter.
Mutation = Callable[[random.Random, Row], Any]

KINDS = ("chats", "messages")
TOUCHED = 0.3
# What names a row wherever it ends, though its id may be mutated.
TRACE = "trace"
MAX_SECONDS, MAX_KILOBYTES = 90, 1_500_000


@dataclass(frozen=True)
class Text:
    """JSON that no encoder writes."""

    json: bytes


def list_fields(row: Row) -> list[str]:
    return [name for name in row if name not in ("id", TRACE)]


def changed(row: Row, **values: Any) -> Text:
    """Return a row with some values as raw JSON."""
    pieces = [json.dumps(row | dict.fromkeys(values, "@"))]
    for name, value in values.items():
        key = f"{json.dumps(name)}: "
        before, _, after = pieces.pop().partition(f'{key}"@"')
        pieces.append(f"{before}{key}{value}{after}")
    return Text(pieces[0].encode("utf-8", "surrogatepass"))


# -- families


def another_type(chance: random.Random, row: Row) -> None:
    name = chance.choice(list_fields(row))
    row[name] = chance.choice([7, -1.5, True, [], {}, [[1], {"a": None}], {"id": "x"}, "text", 2**80, "x" * 5000])


def another_type_of_id(chance: random.Random, row: Row) -> None:
    row["id"] = chance.choice([7, "", True, [], {}, None, [row["id"]]])


def nothing(chance: random.Random, row: Row) -> None:
    for name in chance.sample(list_fields(row), 3):
        row[name] = None


def fewer_fields(chance: random.Random, row: Row) -> None:
    for name in chance.sample(list_fields(row), 3):
        del row[name]


def more_fields(chance: random.Random, row: Row) -> None:
    names = ["", " ", "ID", "Id", "_fetched_at", "_dlt_load_id", "_extra", "extra", "a" * 300, "naïve\n", "'; --", "\0"]
    for name in chance.sample(names, 3):
        row[name] = chance.choice([1, None, "x", {"a": 1}])


def no_object(chance: random.Random, row: Row) -> Any:
    return chance.choice([row["id"], [row["id"]], [[row]]])


def times(chance: random.Random, row: Row) -> None:
    names = [name for name in row if name.endswith("_at")]
    row[chance.choice(names)] = chance.choice(
        [
            *("", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0000-00-00"),
            *("1970-01-01T00:00:00Z", "2001-05-05T05:05:05Z", "2999-01-01T00:00:00Z", "2026-02-30T00:00:00Z", "soon"),
            *("2026-01-01", "2026-01-01T00:00:60Z", "2026-01-01 00:00:00", "2026-01-01T00:00:00.123456789+05:30"),
            *(0, -1, 1767225600, 1767225600000, 1767225600.5, 2**63, -(2**63)),
        ]
    )


def texts(chance: random.Random, row: Row) -> None:
    name = chance.choice([name for name in list_fields(row) if isinstance(row[name], str) and not name.endswith("_at")])
    row[name] = chance.choice(
        ["nul \0 nul", "\0", "\x01\x1f\x7f", "\u202e\u2066\ufeff", "🎉" * 500, "\uffff", " ", "x" * 100_000]
    )


def encodings(chance: random.Random, row: Row) -> Text:
    name = chance.choice([name for name in list_fields(row) if isinstance(row[name], str) and not name.endswith("_at")])
    written = chance.choice(['"\\ud83d"', '"\\udc00 \\ud83d"', '"raw \n newline"', '"raw \t\r tab"', '"\x02"'])
    return changed(row, **{name: written})


def no_utf_8(chance: random.Random, row: Row) -> Text:
    text = changed(row, text=chance.choice(['"caf@@"', '"@@"', '"@@@@ half"']))
    return Text(text.json.replace(b"@@", chance.choice([b"\xe9", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f"])))


def numbers(chance: random.Random, row: Row) -> Text:
    written = chance.choice(["NaN", "Infinity", "-Infinity", "1e999", "-0", "1" * 400, "0.1e-400", "01", "+1", "0x1F"])
    return changed(row, **{chance.choice(["title", "metadata", "text", "size"]): written})


def nesting(chance: random.Random, row: Row) -> Text:
    depth = chance.choice([50, 1_500, 5_000])
    opening, closing_ = chance.choice([("[", "]"), ('{"a":', "}")])
    name = chance.choice(["metadata", "error", "new", "title"])
    return changed(row, **{name: opening * depth + "1" + closing_ * depth})


def repeated_names(chance: random.Random, row: Row) -> Text:
    name = chance.choice(list_fields(row))
    return Text(json.dumps(row)[:-1].encode() + f", {json.dumps(name)}: {json.dumps(row[name])}}}".encode())


def attachments(chance: random.Random, row: Row) -> None:
    file = {"id": f"file of {row['id']}", "url": "https://files.example/signed"}
    row["attachments"] = chance.choice(
        [None, {}, "", 3, {"0": file}, [None], [[file]], [file, 3, {"filename": "x"}], [file | {"size_bytes": 2**70}]]
    )


FAMILIES: dict[str, Mutation] = {
    one.__name__: one
    for one in (
        another_type, another_type_of_id, nothing, fewer_fields, more_fields, no_object, times, texts, encodings,
        no_utf_8, numbers, nesting, repeated_names, attachments,
    )
}  # fmt: skip


def is_touched(chance: random.Random) -> bool:
    return chance.random() < TOUCHED


def seed_random(row_id: str) -> random.Random:
    return random.Random(row_id)


@dataclass(frozen=True)
class Mutations:
    """Mutates some of the rows of chats and messages, each by one of some families."""

    families: tuple[Mutation, ...]

    def row(self, kind: str, row: Row) -> Any:
        if kind not in KINDS or not is_touched(chance := seed_random(row["id"])):
            return row
        row = {TRACE: row["id"], **row}
        found = chance.choice(self.families)(chance, row)
        if isinstance(found, Text):
            return msgspec.Raw(found.json)
        return row if found is None else found

    def body(self, path: str, body: bytes) -> bytes:
        """Add a byte-order mark or white space to every third page, which changes no row."""
        around = [b"", b"\xef\xbb\xbf", b"\r\n\t "][len(body) % 3]
        return around + body if path in ("/v1/chats", "/v1/messages") else body


def check(want: Truth, rows_of: Callable[[str], list[Row]], *, feed: bool = True) -> None:
    """Check that untouched rows are loaded unchanged, and mutated ones loaded or rejected.

    Without a feed, the messages of a chat with an unreadable id are out of reach.
    """
    rejected = [row["row"] for row in rows_of("rejected_rows")]
    chats = {row["id"] for row in rows_of("chats")} | {key for text in rejected if (key := readable_id(text))}
    for kind in KINDS:
        rows, loaded = expected(want)[kind], {row["id"]: row for row in rows_of(kind)}
        if not feed and kind == "messages":
            rows = {key: row for key, row in rows.items() if row["conversation_id"] in chats}
        touched = {key for key in rows if is_touched(seed_random(key))}
        assert len(touched) >= TOUCHED / 2 * len(rows)
        untouched = {key: row for key, row in rows.items() if key not in touched}
        missing = untouched.keys() - loaded.keys()
        assert len(missing) == 0, f"{kind}: {len(missing)} of {len(untouched)} untouched rows are missing"
        stale = [key for key, row in untouched.items() if {name: shown(loaded[key], name) for name in row} != row]
        assert len(stale) == 0, f"{kind}: {len(stale)} of {len(untouched)} untouched rows are not as the API shows them"
        lost = {key for key in touched - loaded.keys() if not any(key in text for text in rejected)}
        assert len(lost) == 0, f"{kind}: {len(lost)} of {len(touched)} touched rows are nowhere"


def readable_id(text: str) -> str | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    key = row.get("id") if isinstance(row, dict) else None
    return key if isinstance(key, str) else None


def shown(row: Row, name: str) -> Any:
    value = row[name]
    return json.loads(value) if name in ("error", "metadata") and isinstance(value, str) else value


# -- one family at a time: the readers, in milliseconds


@pytest.mark.parametrize("feed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_mutated_row_affects_no_other_row(family: str, feed: bool) -> None:
    mutations = Mutations((FAMILIES[family],))
    knobs = Knobs(transform_row=mutations.row, feed=feed)
    with closing(World(knobs, SINCE_1970, page_size=20)) as world:
        world.account.run("DELETE FROM numbers")
        seed(world.account, now=world.at(), chats=60, messages=200, days=30)
        run: Run = world.sync()
        assert run.error is None
        tables = world.store.tables
        check(truth(world.account, knobs), lambda table: list(tables[table].values()), feed=feed)
        assert world.requests <= 2000


# -- all of them in one account: the job, and real destinations


def run_job(job: Job, *options: str) -> None:
    """Run the job within the limits."""
    process = job.start(*options)
    try:
        output, errors = process.communicate(timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode in (0, 3), errors
    assert json.loads(output)["outcome"] == "complete"
    # A process that is not a fork is at most the largest child there was.
    largest = process.max_kilobytes or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert 0 < largest < MAX_KILOBYTES
    assert len(job.server.requests) < 500


def mutated(new_job: NewJob) -> Job:
    mutations = Mutations(tuple(FAMILIES.values()))
    return new_job(Knobs(transform_row=mutations.row, transform_body=mutations.body), chats=150, messages=600)


def as_dicts(cursor: Any) -> list[Row]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def test_mutated_account_is_loaded_into_duckdb(new_job: NewJob) -> None:
    job = mutated(new_job)
    run_job(job)
    with duckdb.connect(str(job.database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        check(job.server.truth(), lambda table: as_dicts(connection.execute(f"SELECT * FROM msgbubbles.{table}")))


def test_mutated_account_is_loaded_into_postgres(new_job: NewJob, postgres_address: str) -> None:
    job = mutated(new_job)
    job.environment = {"DESTINATION__POSTGRES__CREDENTIALS": postgres_address}
    run_job(job, "--destination", "postgres")
    with closing(psycopg2.connect(postgres_address)) as connection, connection.cursor() as cursor:
        # Not every JSON that a server keeps is read by Python's own decoder.
        psycopg2.extras.register_default_json(connection, loads=str)
        psycopg2.extras.register_default_jsonb(connection, loads=str)

        def rows(table: str) -> list[Row]:
            cursor.execute(f"SELECT * FROM msgbubbles.{table}")
            return as_dicts(cursor)

        check(job.server.truth(), rows)
