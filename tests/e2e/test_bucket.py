"""Run the job with a lake whose files are in a bucket, behind an S3 endpoint that dies during a load."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import duckdb
import pytest

from helpers import s3
from helpers.canary import find_words
from helpers.catalog import check_descriptions
from helpers.context import build_destination
from helpers.hooks import spool, typing
from helpers.job import NO_DBT, Job
from helpers.lake import change, lake_in_bucket, query, select
from helpers.marts_reference import check_marts
from helpers.sizes import IS_NIGHTLY, pick_size
from helpers.warehouse_rows import differences_of, select_rows
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.workspace import Workspace

INTO = ("--destination", "ducklake")
MART = "chat_title_history"
# The files that dlt writes after those of its staging dataset.
FILE_OF_ROWS = re.compile("/lake/msgbubbles/(?:chats|messages|attachments)/")


@contextmanager
def poll_messages(workspace: Workspace) -> Iterator[set[int]]:
    """Count the messages as a reader sees them until the block ends, and yield the counts."""
    counts, done = {0}, Event()

    def poll() -> None:
        while not done.wait(pick_size(3, nightly=1)):  # opening a lake takes a second of CPU time
            with suppress(UsageError, duckdb.CatalogException):  # before the first load
                counts.add(query(workspace, "SELECT count(*) AS n FROM msgbubbles.messages")[0]["n"])

    reader = Thread(target=poll)
    reader.start()
    try:
        yield counts
        assert reader.is_alive(), "no read has failed"
    finally:
        done.set()
        reader.join()


def test_next_run_completes_a_load_during_which_the_bucket_died(
    new_job: Callable[..., Job], postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(chats=30, messages=300)
    workspace = Workspace.from_path(job.database, "ducklake")
    with s3.running() as port, s3.proxy_before(port) as proxy:
        s3.create_bucket(port, "lake")
        job.environment = lake_in_bucket(postgres_address, "lake", proxy.port) | {"LOAD__RAISE_ON_MAX_RETRIES": "2"}
        for name, value in lake_in_bucket(postgres_address, "lake", port).items():
            monkeypatch.setenv(name, value)  # this process reads without the proxy

        proxy.choose = lambda method, path: "die" if method == "PUT" and FILE_OF_ROWS.search(path) else None
        with poll_messages(workspace) as counts:
            failed = job.run(*INTO, status=1)
            asked = len(job.server.requests)
            refused = job.run(*INTO, status=2)
            assert len(job.server.requests) == asked, "a run asks the bucket before it reads anything"
        proxy.revive()
        spool(workspace, [typing(1, conversation_id=job.server.truth().chats[0]["id"])])
        if not IS_NIGHTLY:  # test_ducklake.py builds all marts of a lake
            job.selected = {"run": f"+{MART}"}
        done = job.run(*INTO, transform=True)
        for run in (failed, refused):
            assert "the bucket s3://lake/lake cannot be used: it does not answer; check the network" in run.errors

        truth = job.server.truth()
        assert counts == {0}, "no reader has seen a part of the load"
        check_descriptions(workspace)
        with build_destination(workspace).open_reader() as connection:
            assert differences_of(select_rows(connection), truth) == {}
            found = select(connection, "SELECT chat_id FROM msgbubbles.webhook_events")
            assert found == [{"chat_id": truth.chats[0]["id"]}]
            if IS_NIGHTLY:
                for job.selected in ({}, NO_DBT):  # the first increment records its statements
                    change(job)
                    job.run(*INTO, transform=True)
            check_marts(partial(select, connection), None if IS_NIGHTLY else [MART])
            counts_of_mart = f"SELECT count(*), count(DISTINCT title) FROM {{}}.{MART}"
            marts = connection.execute(counts_of_mart.format("marts")).fetchall()
            assert marts[0][0] > 0
        assert {check["name"]: check["state"] for check in job.ask("check", *INTO)}["destination"] == "ok"

        keys = [s3.SECRET, s3.KEY]
        assert find_words(tmp_path, keys) == {}
        assert not [key for key in keys for run in (failed, refused, done) if key in f"{run.errors}{run.summary}"]

        # The statements in docs/destinations.md.
        with duckdb.connect(config={"extension_directory": str(workspace.folder / "extensions")}) as analyst:
            analyst.execute(
                f"CREATE SECRET (TYPE s3, KEY_ID '{s3.KEY}', SECRET '{s3.SECRET}', REGION 'us-east-1', "
                f"ENDPOINT '127.0.0.1:{port}', URL_STYLE 'path', USE_SSL false)"
            )
            analyst.execute(
                f"ATTACH 'ducklake:postgres:{postgres_address}' AS lake "
                "(DATA_PATH 's3://lake/lake', METADATA_SCHEMA 'lake', READ_ONLY)"
            )
            assert analyst.execute(counts_of_mart.format("lake.marts")).fetchall() == marts
