"""Run `python pipelines/chats.py --help` for what it does."""

import sys

from msgbubbles_sync.cli.dispatch import run

if __name__ == "__main__":
    run("chats", sys.argv[1:], "chats.py")
