"""Open a Spark session in which dbt builds marts from files, and writes files.

The session's catalog is in memory: only Parquet files outlive it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgbubbles_sync.destinations.parquet_files import STAGING
from msgbubbles_sync.destinations.parquet_tables import read_tables
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.extras import format_install_command
from msgbubbles_sync.files import write_privately

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NO_SPARK = """Spark builds the marts of --destination filesystem, and it needs {what};
or skip the marts: --no-transform"""
NO_START = """Spark did not start ({why}); its messages are in {log}. It needs Java 17 or 21: fix that, or
[transforms.spark] in dlt_config/config.toml, or skip the marts: --no-transform"""
# The models rely on these.
NEEDED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.catalogImplementation": "in-memory",
    "spark.sql.ansi.enabled": "true",
}
DEFAULTS = {
    "spark.master": "local[*]",
    "spark.app.name": "msgbubbles marts",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
# On one machine, most of Spark's default of 200 partitions would be empty.
ONE_MACHINE = {"spark.sql.shuffle.partitions": "8"}
LOGGING = """rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.append = true
appender.file.fileName = {log}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c: %m%n%ex
"""


def require() -> str:
    """Check that Spark can run, and describe with what. Raises `UsageError`."""
    if importlib.util.find_spec("pyspark") is None or importlib.util.find_spec("dbt.adapters.spark") is None:
        raise UsageError(NO_SPARK.format(what=f"more packages: {format_install_command('spark')}"))
    java = shutil.which("java", path=f"{os.environ.get('JAVA_HOME', '')}/bin{os.pathsep}{os.environ.get('PATH', '')}")
    if java is None:
        raise UsageError(NO_SPARK.format(what="Java 17 or 21 on the path, or in JAVA_HOME"))
    return f"{java} runs it"


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def open_session(settings: Mapping[str, Any], logs: Path) -> Iterator[SparkSession]:
    """Open a session with these settings until the block ends. Spark's messages go to a file in `logs`."""
    require()
    options = DEFAULTS | {name: _as_text(value) for name, value in settings.items()} | NEEDED
    is_local = options["spark.master"].startswith("local")
    log = write_privately(logs / "spark.log", "")
    logging = write_privately(logs / "log4j2.properties", LOGGING.format(log=log))
    java = f"-Dlog4j2.configurationFile=file:{logging} {options.get('spark.driver.extraJavaOptions', '')}"
    options["spark.driver.extraJavaOptions"] = java.strip()
    if is_local:
        options = ONE_MACHINE | options
        # No other machine has to reach it.
        os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost"}
    with warnings.catch_warnings(), _redirect_stderr(log):
        warnings.simplefilter("ignore")  # pandas is too new for a part of Spark that is not used here
        from pyspark.sql import SparkSession  # only a part of the users have it installed

        builder = SparkSession.builder
        for name, value in options.items():
            builder = builder.config(name, value)
        try:
            spark = builder.getOrCreate()
        except Exception as error:  # of many types; the log has its message
            raise UsageError(NO_START.format(why=type(error).__name__, log=log)) from None
    try:
        yield spark
    finally:
        spark.stop()


@contextmanager
def _redirect_stderr(path: Path) -> Iterator[None]:
    """Redirect the standard error of this process, and of those started in the block, to a file."""
    before = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def register_tables(spark: SparkSession, loaded: Path, build: Path, prefix: str) -> None:
    """Register the tables in the folder `loaded`, and let the models be written to the folder `build`."""
    for schema in ("files", f"{prefix}msgbubbles"):
        spark.sql(f"CREATE DATABASE {schema}")
    spark.sql(f"CREATE DATABASE {prefix}marts LOCATION {_quote(str(build))}")
    spark.sql(f"CREATE DATABASE {prefix}staging LOCATION {_quote(str(build / STAGING))}")
    for name, table in read_tables(loaded).items():
        view = f"{prefix}msgbubbles.{name}"
        options = f"path {_quote(str(loaded / name))}, mergeSchema 'true'"
        spark.sql(f"CREATE TABLE files.{name} USING parquet OPTIONS ({options})")
        ranked = f"SELECT *, {table.rank} AS _rank FROM files.{name}"  # noqa: S608
        spark.sql(f"CREATE VIEW {view} AS SELECT * EXCEPT (_rank) FROM ({ranked}) WHERE _rank = 1")  # noqa: S608
    # Only incremental builds read these, and Spark always builds everything.
    for view, columns in {
        f"{prefix}msgbubbles._dlt_loads": "'' AS load_id, 0 AS status",
        f"{prefix}staging.built_loads": "'' AS mart, '' AS load_id",
        f"{prefix}staging.thread_chats": (
            "'' AS chat_id, '' AS from_handle, '' AS remote_handle, false AS is_group, now() AS created_at"
        ),
    }.items():
        spark.sql(f"CREATE VIEW {view} AS SELECT {columns} WHERE false")


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
