"""Run `python pipelines/groups.py --help` for what it does."""

from msgbubbles_sync.cli.groups import app
from msgbubbles_sync.cli.main import start

if __name__ == "__main__":
    start(app)
