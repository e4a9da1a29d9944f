"""Entry script of `groups`; see `python pipelines/groups.py --help`."""

import sys

from msgbubbles_sync.cli.dispatch import run

if __name__ == "__main__":
    run("groups", sys.argv[1:], "groups.py")
