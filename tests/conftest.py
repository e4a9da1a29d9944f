import gc
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, settings

from helpers import faster_libraries, postgres, process
from helpers.sizes import IS_NIGHTLY
from msgbubbles_sync.cli.dispatch import GC_THRESHOLD

gc.set_threshold(GC_THRESHOLD, 10, 10)  # as in a command; collections while modules are imported find nothing
if faster_libraries.BY_DAY:
    faster_libraries.configure_duckdb()
# Temporary files are in memory, where a machine has plenty of it: a database writes and flushes many small ones.
IN_MEMORY, MIN_FREE_GB = Path("/dev/shm"), 4  # noqa: S108 - pytest makes its folder there private
# A test that passes for a change passes again, and on a busy machine. At night, new examples are drawn.
settings.register_profile(
    "default", deadline=None, derandomize=not IS_NIGHTLY, suppress_health_check=[HealthCheck.too_slow]
)


def has_room_in_memory() -> bool:
    """Return whether programs can run from IN_MEMORY, and both it and the machine's memory have room."""
    with suppress(OSError):
        folder, memory = os.statvfs(IN_MEMORY), Path("/proc/meminfo").read_text()
        available = re.search(r"MemAvailable: +(\d+) kB", memory)
        free = (folder.f_bavail * folder.f_frsize, int(available[1]) * 1024 if available else 0)
        return min(free) >= MIN_FREE_GB * 1024**3 and not folder.f_flag & os.ST_NOEXEC and os.access(IN_MEMORY, os.W_OK)
    return False


def pytest_configure() -> None:
    # Once for all workers, which inherit it. At night, and if the user has chosen another folder, tests use that.
    if faster_libraries.BY_DAY and "TMPDIR" not in os.environ and has_room_in_memory():
        os.environ["TMPDIR"] = tempfile.tempdir = str(IN_MEMORY)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: each worker takes one after the other, and none is alone at the end."""
    items.sort(key=lambda item: item.nodeid.startswith("tests/msgbubbles") and item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    gc.freeze()
    if not faster_libraries.BY_DAY:
        return
    if "dlt" in sys.modules:
        faster_libraries.memoize_type_hints()
    if "dbt.cli.main" in sys.modules:
        faster_libraries.speed_up_dbt()


def pytest_sessionfinish() -> None:
    process.stop_server()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """Start one PostgreSQL server for all workers, and return its address."""
    own = tmp_path_factory.getbasetemp()
    with postgres.running((own if worker_id == "master" else own.parent) / "postgres") as address:
        yield address


@pytest.fixture
def new_role(postgres_server: str, worker_id: str) -> Iterator[Callable[..., str]]:
    """Return a function that creates a role. Roles belong to the server.

    Name this fixture before `postgres_address`: the roles can be dropped once the database is.
    """
    names: list[str] = []
    with closing(psycopg2.connect(postgres_server)) as admin, admin.cursor() as cursor:
        admin.autocommit = True

        def create(name: str, options: str = "") -> str:
            names.append(f"{name}_{worker_id}")
            cursor.execute(f"CREATE ROLE {names[-1]} LOGIN {options}")
            return names[-1]

        yield create
        for name in names:
            cursor.execute(f"DROP ROLE {name}")


@pytest.fixture
def postgres_address(postgres_server: str, worker_id: str) -> Iterator[str]:
    """Return the address of an empty database. The name is the same for all tests of a worker: dbt parses it once."""
    with postgres.new_database(postgres_server, f"test_{worker_id}") as address:
        yield address
