"""An Airflow DAG (2.9 or later) that syncs the warehouse every five minutes. Copy it into the folder of your DAGs."""

from datetime import UTC, datetime, timedelta

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task

PROJECT = "/path/to/project"


@dag(
    schedule=timedelta(minutes=5),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,  # a run reads everything that is missing, whatever its date
    max_active_runs=1,
    default_args={"retries": 0},  # the next run continues
)
def msgbubbles_sync() -> None:
    # A process of its own, with the project's environment. Status 75, another job runs, marks the task as skipped.
    @task.bash(skip_on_exit_code=75)
    def sync() -> str:
        return f"{PROJECT}/.venv/bin/python {PROJECT}/pipelines/chats.py --quiet"

    sync()


msgbubbles_sync()
