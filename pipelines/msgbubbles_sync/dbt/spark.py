"""A session of Spark in which dbt builds marts of files, and leaves files.

Nothing of Spark outlives the session: what it is told of the tables is in memory, and all it makes are Parquet files.
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
from msgbubbles_sync.files import write_privately

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NO_SPARK = """the marts of files are made by Spark, which needs {what}; or leave them as they are: --no-transform"""
NO_START = """Spark could not be started ({why}), which needs Java 17 or 21; what it said is in {log}; mend that, or
[transforms.spark] of dlt_config/config.toml, or leave the marts as they are: --no-transform"""
# What the models rely on.
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
# On one machine, Spark's own 200 are mostly empty ones.
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
    """What is there of Spark, in words. Raises `UsageError` where it could not run."""
    if importlib.util.find_spec("pyspark") is None or importlib.util.find_spec("dbt.adapters.spark") is None:
        raise UsageError(NO_SPARK.format(what='more packages: pip install "msgbubbles-sync[spark]"'))
    java = shutil.which("java", path=f"{os.environ.get('JAVA_HOME', '')}/bin{os.pathsep}{os.environ.get('PATH', '')}")
    if java is None:
        raise UsageError(NO_SPARK.format(what="Java 17 or 21 on the path, or in JAVA_HOME"))
    return f"{java} runs it"


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def session(given: Mapping[str, Any], logs: Path) -> Iterator[SparkSession]:
    """A session with these settings, which ends with the block. What Spark has to say is in a file in `logs`."""
    require()
    options = DEFAULTS | {name: _as_text(value) for name, value in given.items()} | NEEDED
    is_local = options["spark.master"].startswith("local")
    log = write_privately(logs / "spark.log", "")
    logging = write_privately(logs / "log4j2.properties", LOGGING.format(log=log))
    java = f"-Dlog4j2.configurationFile=file:{logging} {options.get('spark.driver.extraJavaOptions', '')}"
    options["spark.driver.extraJavaOptions"] = java.strip()
    if is_local:
        options = ONE_MACHINE | options
        # All of it is on this machine, and nobody else has to reach it.
        os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost"}
    with warnings.catch_warnings(), _errors_into(log):
        warnings.simplefilter("ignore")  # it says that pandas is too new for a part that is not used
        from pyspark.sql import SparkSession

        builder = SparkSession.builder
        for name, value in options.items():
            builder = builder.config(name, value)
        try:
            spark = builder.getOrCreate()
        except Exception as error:  # its kinds are many, and what it says is for its log
            raise UsageError(NO_START.format(why=type(error).__name__, log=log)) from None
    try:
        yield spark
    finally:
        spark.stop()


@contextmanager
def _errors_into(path: Path) -> Iterator[None]:
    """What processes that are begun here write to standard error goes into a file."""
    before = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def show(spark: SparkSession, landed: Path, build: Path, prefix: str) -> None:
    """Have the session know the tables that lie in `landed`, and write what is built of them into `build`."""
    for schema in ("files", f"{prefix}msgbubbles"):
        spark.sql(f"CREATE DATABASE {schema}")
    spark.sql(f"CREATE DATABASE {prefix}marts LOCATION {_quoted(str(build))}")
    spark.sql(f"CREATE DATABASE {prefix}staging LOCATION {_quoted(str(build / STAGING))}")
    for name, table in read_tables(landed).items():
        view = f"{prefix}msgbubbles.{name}"
        options = f"path {_quoted(str(landed / name))}, mergeSchema 'true'"
        spark.sql(f"CREATE TABLE files.{name} USING parquet OPTIONS ({options})")
        ranked = f"SELECT *, {table.rank} AS _rank FROM files.{name}"  # noqa: S608
        spark.sql(f"CREATE VIEW {view} AS SELECT * EXCEPT (_rank) FROM ({ranked}) WHERE _rank = 1")  # noqa: S608
    # What only increments look at: everything is built anew.
    for view, columns in {
        f"{prefix}msgbubbles._dlt_loads": "'' AS load_id, 0 AS status",
        f"{prefix}staging.built_loads": "'' AS mart, '' AS load_id",
    }.items():
        spark.sql(f"CREATE VIEW {view} AS SELECT {columns} WHERE false")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
