"""A Dagster asset that syncs the warehouse every five minutes: `dagster dev -f deploy/dagster_sync.py`."""

import json
import subprocess

import dagster as dg

PROJECT = "/path/to/project"
# Complete; complete, but look at it; another job runs.
EXPECTED = (0, 3, 75)


@dg.asset(description="The MsgBubbles warehouse: API rows and marts.")
def msgbubbles_warehouse(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    # A process of its own, with the project's environment.
    command = [f"{PROJECT}/.venv/bin/python", f"{PROJECT}/pipelines/chats.py", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    context.log.info(done.stderr)
    if done.returncode not in EXPECTED:
        raise dg.Failure(f"exit status {done.returncode}: {done.stderr[-2000:]}")
    summary = json.loads(done.stdout) if done.stdout else {}
    return dg.MaterializeResult(metadata={"exit_status": done.returncode, "summary": summary})


schedule = dg.ScheduleDefinition("msgbubbles", cron_schedule="*/5 * * * *", target=[msgbubbles_warehouse])
defs = dg.Definitions(assets=[msgbubbles_warehouse], schedules=[schedule])
