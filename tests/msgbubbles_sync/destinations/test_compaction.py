"""A rewritten database is smaller, and otherwise the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import duckdb
import pytest

from msgbubbles_sync.destinations import compaction
from msgbubbles_sync.destinations.compaction import compact, drop_leftovers, should_compact

pytestmark = pytest.mark.slow

TABLES = """
CREATE SCHEMA msgbubbles; CREATE SCHEMA marts; CREATE SEQUENCE msgbubbles.numbers START 7;
CREATE TABLE msgbubbles.messages (id BIGINT PRIMARY KEY, text VARCHAR NOT NULL, extra JSON, sent_at TIMESTAMPTZ);
CREATE INDEX by_text ON msgbubbles.messages (text);
CREATE VIEW marts.second AS SELECT count(*) AS messages FROM company.msgbubbles.messages;
CREATE VIEW marts.first AS FROM marts.second;
COMMENT ON TABLE msgbubbles.messages IS 'each message once';
CREATE TABLE msgbubbles._dlt_pipeline_state AS
    SELECT 'msgbubbles' AS pipeline_name, i AS version, i::VARCHAR AS _dlt_load_id FROM range(100, 150) t(i);
"""


def filled(folder: Path) -> Path:
    """Create a database from which most rows were deleted."""
    work = folder / "company.duckdb"
    with duckdb.connect(str(work)) as connection:
        connection.execute(TABLES)
        connection.execute(
            "INSERT INTO msgbubbles.messages SELECT i, md5(i::VARCHAR) || md5((i + 1)::VARCHAR), '{}', now() "
            "FROM range(60000) t(i)"
        )
        connection.execute("CHECKPOINT")
        connection.execute("DELETE FROM msgbubbles.messages WHERE id >= 1000")
        connection.execute("CHECKPOINT")
    return work


def is_wasteful(work: Path, stamp: Path) -> bool:
    with duckdb.connect(str(work)) as connection:
        drop_leftovers(connection)
        return should_compact(connection, stamp)


def described(work: Path) -> list[object]:
    with duckdb.connect(str(work), read_only=True) as connection:
        return [
            connection.execute(sql).fetchall()
            for sql in (
                "FROM marts.first",
                "SELECT bit_xor(hash(one)) FROM msgbubbles.messages AS one",
                "SELECT constraint_type, constraint_column_names FROM duckdb_constraints() ORDER BY ALL",
                "SELECT index_name FROM duckdb_indexes()",
                "SELECT sequence_name, start_value FROM duckdb_sequences()",
                "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1",
                "SELECT table_name, comment FROM duckdb_tables() ORDER BY 1",
                "SELECT column_name, data_type FROM duckdb_columns() WHERE schema_name = 'msgbubbles' ORDER BY ALL",
            )
        ]


def test_database_with_free_space_is_rewritten_unchanged(tmp_path: Path) -> None:
    work, noted = filled(tmp_path), tmp_path / "compacted"
    (tmp_path / "company.duckdb.compacting").write_text("of a process that was killed")
    before, size = described(work), work.stat().st_size
    assert is_wasteful(work, noted)
    compact(work)
    assert work.stat().st_size < size / 2
    assert described(work) == before
    assert not is_wasteful(work, noted), "nothing is wasted now"
    assert [path.name for path in tmp_path.iterdir()] == ["company.duckdb"]
    with duckdb.connect(str(work)) as connection:
        states = connection.execute("SELECT min(version), max(version) FROM msgbubbles._dlt_pipeline_state").fetchall()
        assert states == [(140, 149)], "dlt reads the newest only"
        connection.execute(
            "INSERT INTO msgbubbles.messages VALUES (nextval('msgbubbles.numbers') + 100000, 'new', '{}', now())"
        )
        assert connection.execute("FROM marts.first").fetchall() == [(1001,)]


INTERVALS = [(1, 60, False), (1 << 40, 5, True), (1 << 40, 1, False)]


@pytest.mark.parametrize(("large_bytes", "minutes", "is_rewritten"), INTERVALS)
def test_database_is_rewritten_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_bytes: int, minutes: int, is_rewritten: bool
) -> None:
    monkeypatch.setattr(compaction, "LARGE_BYTES", large_bytes)
    work, noted = filled(tmp_path), tmp_path / "compacted"
    noted.touch()
    os.utime(noted, (time.time() - 60 * minutes,) * 2)
    assert is_wasteful(work, noted) == is_rewritten


def test_killed_compaction_leaves_the_old_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    work = filled(tmp_path)
    before = described(work)
    monkeypatch.setattr(compaction, "sync_to_disk", killed)
    with pytest.raises(KeyboardInterrupt):
        compact(work)
    assert described(work) == before
