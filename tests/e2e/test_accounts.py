"""Several accounts, each with a job and a database of its own, at the same time and in the same folder."""

from __future__ import annotations

from collections.abc import Callable

import duckdb

from job import Job


def test_three_accounts_side_by_side_and_one_whose_key_is_refused_stops_no_other(new_job: Callable[..., Job]) -> None:
    jobs = {
        name: new_job(chats=40, messages=300 + 10 * number) for number, name in enumerate(("north", "south", "west"))
    }
    jobs["west"].server.knobs.active = False
    processes = {name: job.start("--database", f"{name}.duckdb") for name, job in jobs.items()}
    outcomes = {name: jobs[name].finish(process) for name, process in processes.items()}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"north": 0, "south": 0, "west": 1}
    folder = jobs["north"].folder
    with duckdb.connect() as connection:
        for name, outcome in (("north", "complete"), ("south", "complete"), ("west", "failed")):
            connection.execute(f"ATTACH '{folder / name}.duckdb' AS {name} (READ_ONLY)")
            assert connection.execute(f"SELECT outcome FROM {name}.msgbubbles.sync_runs").fetchall() == [(outcome,)]
        for name in ("north", "south"):
            ids = connection.execute(f"SELECT id FROM {name}.msgbubbles.messages ORDER BY id").fetchall()
            assert [one for (one,) in ids] == sorted(row["id"] for row in jobs[name].server.truth().messages)
