from __future__ import annotations

import duckdb
import pytest

from msgbubbles_sync.sql import use_one_thread

THREADS = "SELECT current_setting('threads')"


def test_database_has_all_threads_again_after_a_statement_failed() -> None:
    with duckdb.connect() as connection:
        before = connection.execute("RESET threads").execute(THREADS).fetchall()
        with pytest.raises(duckdb.CatalogException), use_one_thread(connection):
            connection.execute("FROM missing")
        assert connection.execute(THREADS).fetchall() == before
