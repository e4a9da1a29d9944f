"""Run `python pipelines/webhooks.py --help` for what it does."""

import sys

from msgbubbles_sync.cli.dispatch import run

if __name__ == "__main__":
    run("webhooks", sys.argv[1:], "webhooks.py")
