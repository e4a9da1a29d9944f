"""The statements that create the tables that dlt loads, without rows."""

from msgbubbles_sync.tables import CLAIM_TABLE, ERASURES, FAILED_READS, PRIVACY, SYNC_RUNS, TABLES, define_columns

# The job writes these tables itself, and their tests create them as the job does.
WRITTEN_BY_JOB = (SYNC_RUNS, FAILED_READS, CLAIM_TABLE, PRIVACY, ERASURES)
# Without constraints, so that a test can load invalid rows.
DDL = [
    "create schema msgbubbles",
    *(
        f"create table msgbubbles.{table.name} ({define_columns(table)}, _dlt_load_id varchar not null)"
        for table in TABLES.values()
        if table not in WRITTEN_BY_JOB
    ),
    "create table msgbubbles._dlt_loads (load_id varchar not null, schema_name varchar, status bigint not null,"
    " inserted_at timestamptz not null, schema_version_hash varchar)",
]
