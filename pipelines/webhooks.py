"""Entry script of `webhooks`; see `python pipelines/webhooks.py --help`."""

import sys

from msgbubbles_sync.cli.dispatch import run

if __name__ == "__main__":
    run("webhooks", sys.argv[1:], "webhooks.py")
