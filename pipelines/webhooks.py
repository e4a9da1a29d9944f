"""Run `python pipelines/webhooks.py --help` for what it does."""

from msgbubbles_sync.cli.main import start
from msgbubbles_sync.cli.webhooks import app

if __name__ == "__main__":
    start(app)
