"""Run `python pipelines/chats.py --help` for what it does."""

from msgbubbles_sync.cli.chats import app
from msgbubbles_sync.cli.main import start

if __name__ == "__main__":
    start(app)
