"""Stands for `.venv/bin/python` in a copy of the project: has the fork server run a script.

`helpers.process.install_forks` writes it there. It imports little, because it is started for each command.
"""

import json
import os
import socket
import sys


def main() -> None:
    if not sys.argv[1:2] or not sys.argv[1].endswith(".py"):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606
    control = socket.socket(fileno=int(os.environ["FORK_SERVER"]))
    report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0)
    os.umask(mask)
    request = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib would double the time to start
        "new_session": False,
        "umask": mask,
        "limits": {},
    }
    socket.send_fds(control, [json.dumps(request).encode()], [theirs.fileno(), 0, 1, 2])
    theirs.close()
    report.recv(100)  # its process id
    os._exit(os.waitstatus_to_exitcode(json.loads(report.recv(1000))[0]) & 0xFF)


if __name__ == "__main__":
    main()
