"""Entry script of `chats`; see `python pipelines/chats.py --help`."""

import sys

from msgbubbles_sync.cli.dispatch import run

if __name__ == "__main__":
    run("chats", sys.argv[1:], "chats.py")
