"""Run `python pipelines/groups.py --help` for what it does."""

import sys

from msgbubbles_sync.cli.dispatch import run

if __name__ == "__main__":
    run("groups", sys.argv[1:], "groups.py")
