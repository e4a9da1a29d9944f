"""A lake whose files are in a bucket, with an S3 endpoint that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pytest
from dlt.pipeline.exceptions import PipelineStepFailed

from helpers import azure, s3
from helpers.context import build_destination
from helpers.lake import lake_in_bucket, write_rows
from helpers.s3 import Fault, Proxy
from msgbubbles_sync.destinations.ducklake import DuckLake
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow
NewLake = Callable[..., DuckLake]
ROWS = 3000


@pytest.fixture(scope="module")
def endpoint() -> Iterator[int]:
    with s3.running() as port:
        yield port


@pytest.fixture
def proxy(endpoint: int) -> Iterator[Proxy]:
    with s3.proxy_before(endpoint) as found:
        yield found


@pytest.fixture
def open_lake(postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewLake:
    """Return a function that builds the destination of a lake in a bucket of this name, behind this port."""

    def build(bucket: str, port: int, **changes: str) -> DuckLake:
        for name, value in lake_in_bucket(postgres_address, bucket, port).items():
            monkeypatch.setenv(name, changes.get(name.rpartition("__")[2], value))
        workspace = Workspace.from_path(tmp_path / "company.duckdb", "ducklake")
        workspace.make_folders()
        lake = build_destination(workspace)
        assert isinstance(lake, DuckLake)
        return lake

    return build


def load(lake: DuckLake, first: int) -> None:
    """Load two tables of new rows through dlt, or finish a load."""
    pipeline = build_pipeline(lake)
    rows = pa.table({"id": range(first, first + ROWS), "text": [f"text {number}" * 9 for number in range(ROWS)]})
    tables = [dlt.resource(rows, name=name, write_disposition="append") for name in ("chats", "messages")]
    pipeline.run(None if pipeline.has_pending_data else tables)


def count_rows(lake: DuckLake) -> list[Any]:
    with lake.open_reader() as connection:
        return [
            connection.execute(f"SELECT count(*), count(DISTINCT id) FROM msgbubbles.{table}").fetchall()[0]
            for table in ("chats", "messages")
        ]


def test_next_load_completes_after_each_fault(
    open_lake: NewLake, endpoint: int, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "2")
    s3.create_bucket(endpoint, "faults")
    load(open_lake("faults", proxy.port), 0)
    reasons: dict[Fault, str] = dict.fromkeys(("cut", "die"), "it does not answer")
    reasons["expire"] = "the key has expired; configure a new one"
    for number, (fault, reason) in enumerate(reasons.items(), 1):
        rows = number * ROWS
        proxy.choose = lambda method, path, fault=fault: fault if method == "PUT" and "/messages/" in path else None  # type: ignore[misc]
        with pytest.raises(PipelineStepFailed) as raised:
            load(open_lake("faults", proxy.port), rows)
        lake = open_lake("faults", endpoint)
        assert f"the bucket s3://faults/lake cannot be used: {reason}" in str(lake.explain(str(raised.value)))
        assert count_rows(lake)[1] == (rows, rows), "a reader sees the whole file or nothing of it"

        proxy.revive()
        load(open_lake("faults", proxy.port), rows)
        assert count_rows(open_lake("faults", endpoint)) == [(rows + ROWS, rows + ROWS)] * 2


def test_single_slow_down_is_waited_for(open_lake: NewLake, endpoint: int, proxy: Proxy) -> None:
    s3.create_bucket(endpoint, "single")
    proxy.choose = lambda _method, _path: "slow down" if len(proxy.requests) % 3 == 1 else None
    lake = open_lake("single", proxy.port)
    lake.prepare()
    with lake.open_writer() as connection:
        connection.execute("CREATE SCHEMA msgbubbles")
        for table in ("chats", "messages"):
            connection.execute(f"CREATE TABLE msgbubbles.{table} AS FROM range({ROWS}) AS rows (id)")
    assert count_rows(lake) == [(ROWS, ROWS)] * 2


def test_two_writers_lose_nothing(open_lake: NewLake, endpoint: int) -> None:
    s3.create_bucket(endpoint, "writers")
    lake = open_lake("writers", endpoint)
    lake.prepare()
    with lake.open_writer() as connection:
        connection.execute("CREATE SCHEMA msgbubbles")
        for table in ("chats", "messages"):
            connection.execute(f"CREATE TABLE msgbubbles.{table} (id BIGINT)")

    folder = lake.workspace.database.parent
    with ThreadPoolExecutor(2) as pool:  # each with a DuckDB of its own, which meets the other only in the catalog
        for done in [pool.submit(write_rows, folder, number * 4 * ROWS, ROWS) for number in range(2)]:
            done.result(timeout=120)
    assert count_rows(lake) == [(8 * ROWS, 8 * ROWS)] * 2


def test_files_of_failed_loads_are_removed_and_those_of_other_lakes_stay(
    open_lake: NewLake, endpoint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.create_bucket(endpoint, "orphans")
    lake = open_lake("orphans", endpoint)
    lake.prepare()
    load(lake, 0)
    orphan, other = (f"s3://orphans/lake/{schema}/messages/ducklake-1.parquet" for schema in ("msgbubbles", "other"))

    def read_sizes(*add: str) -> dict[str, int]:
        """Add files, remove those of failed loads, and return the numbers of rows in the others by file."""
        with lake._connect(lake._read_lake().bucket) as connection:
            for path in add:
                connection.execute(f"COPY (FROM range(9)) TO '{path}' (FORMAT parquet)")
            lake.remove_failed_loads()
            found = connection.execute("FROM glob('s3://orphans/lake/*/*/ducklake-*.parquet')").fetchall()
            counts = {path: connection.execute(f"SELECT count(*) FROM '{path}'").fetchall()[0][0] for (path,) in found}
        return {path: count for path, count in counts.items() if count != ROWS}

    assert read_sizes(orphan) == {}
    assert read_sizes(orphan, other) == {orphan: 0, other: 9}, "another account may be writing it"
    assert count_rows(lake) == [(ROWS, ROWS)] * 2

    monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__DUCKLAKE_NAME", "second")
    with pytest.raises(UsageError, match="holds files of another lake in msgbubbles"):
        lake.prepare()
    with lake._attach():  # as an earlier release would
        pass
    assert read_sizes(orphan)[orphan] == 9
    assert "another lake has its files in the same folder" in str(lake.list_out_of_reach())


def test_bucket_that_cannot_be_used_is_explained_without_its_key(
    open_lake: NewLake, endpoint: int, proxy: Proxy, tmp_path: Path
) -> None:
    def explain(lake: DuckLake) -> str:
        with pytest.raises(UsageError) as raised:
            lake.prepare()
        text = str(raised.value)
        assert s3.SECRET not in text
        assert s3.KEY not in text
        return text.removeprefix("the bucket s3://lake/lake cannot be used: ")

    assert explain(open_lake("lake", endpoint)).startswith("there is no bucket of that name; create it")
    assert explain(open_lake("lake", s3.find_free_port())).startswith("it does not answer; check the network")
    proxy.choose = lambda _method, _path: "slow down"
    assert explain(open_lake("lake", proxy.port)).startswith("it does not answer")
    (tmp_path / "buckets" / "lake").mkdir(parents=True)
    with s3.running(tmp_path / "buckets") as port:
        refused = explain(open_lake("lake", port, AWS_SECRET_ACCESS_KEY=f"not-{s3.SECRET}"))
        assert refused.startswith("it refuses the key; correct the key")
        open_lake("lake", port).prepare()


@pytest.mark.parametrize("url", ["ftp://lake/lake", "az://lake/lake"])
def test_bucket_without_usable_address_is_refused(open_lake: NewLake, url: str) -> None:
    with pytest.raises(UsageError, match=r"\[destination.ducklake.credentials\]"):
        open_lake("lake", 1, BUCKET_URL=url).prepare()


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ('Cannot open file "/lake/ducklake-01a-b.parquet": No such file or directory', "files that are missing"),
        ("HTTP GET error on 'http://lake/lake/ducklake-01a-b.parquet' (HTTP 404)", "files that are missing"),
        ("HTTP GET error on 'http://lake/lake/ducklake-01a-b.parquet': NoSuchBucket (HTTP 404)", "no bucket of that"),
    ],
)
def test_missing_file_is_told_from_a_missing_bucket(open_lake: NewLake, message: str, meaning: str) -> None:
    lake = open_lake("lake", 1)
    assert meaning in str(lake.explain(message))
    assert lake.workspace.is_pending("lost_files") == ("files" in meaning)


def test_google_bucket_is_opened_through_its_interface_for_s3(open_lake: NewLake) -> None:
    lake = open_lake("lake", 1, BUCKET_URL="gs://lake/lake", ENDPOINT_URL="")
    bucket = lake._read_lake().bucket
    assert bucket is not None
    assert (bucket.url, bucket.secret["endpoint"]) == ("s3://lake/lake", "storage.googleapis.com")


@pytest.fixture
def open_container(open_lake: NewLake, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DuckLake]:
    """Return a function that builds the destination of a lake in a container of Azure, given the account's key."""

    def build(key: str) -> DuckLake:
        # With a token, dlt needs no package of Azure's to make one.
        for name, value in (("ACCOUNT_NAME", azure.ACCOUNT), ("ACCOUNT_KEY", key), ("SAS_TOKEN", "token")):
            monkeypatch.setenv(f"DESTINATION__DUCKLAKE__CREDENTIALS__STORAGE__CREDENTIALS__AZURE_STORAGE_{name}", value)
        return open_lake("lake", 1, BUCKET_URL="az://lake/lake")

    return build


def test_azure_container_is_opened_with_an_account_key(open_container: Callable[[str], DuckLake]) -> None:
    bucket = open_container("key")._read_lake().bucket
    assert bucket is not None
    assert bucket.secret["connection_string"] == f"AccountName={azure.ACCOUNT};AccountKey=key"
    assert bucket.settings == {"azure_transport_option_type": "curl"}


def test_lake_in_an_azure_container_is_loaded_and_cleaned(
    open_container: Callable[[str], DuckLake], tmp_path: Path
) -> None:
    with azure.running(tmp_path / "azure") as port:
        # Both keys become a part of a connection string, in which an emulator's address may follow.
        address = f";BlobEndpoint=http://127.0.0.1:{port}/{azure.ACCOUNT}"
        lake = open_container(azure.KEY + address)
        with pytest.raises(UsageError) as missing:
            lake.prepare()
        azure.create_container(port, "lake")
        with pytest.raises(UsageError) as refused:
            open_container(azure.KEY[4:8] + azure.KEY[4:] + address).prepare()
        lake = open_container(azure.KEY + address)
        lake.prepare()
        for first in (0, ROWS):
            load(lake, first)
        assert count_rows(lake) == [(2 * ROWS, 2 * ROWS)] * 2
        with lake.open_writer() as connection:
            new = f"SELECT * FROM msgbubbles.messages WHERE id >= {ROWS}"
            connection.execute(f"CREATE OR REPLACE TABLE msgbubbles.messages AS {new}")
        lake.remove_old_versions()
        assert count_rows(lake) == [(2 * ROWS, 2 * ROWS), (ROWS, ROWS)]
        with lake._connect(lake._read_lake().bucket) as connection:
            files = connection.execute("FROM glob('az://lake/lake/msgbubbles/messages/*')").fetchall()
        assert len(files) == 1, "the others are removed"
    assert "there is no bucket of that name" in str(missing.value)
    assert "it refuses the key" in str(refused.value)
