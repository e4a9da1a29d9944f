"""Stop a command by Ctrl-C or SIGTERM: in order at the first signal, immediately at the second."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from msgbubbles_sync.outcome import EXIT_STOPPED

# How long the process may take to end after the second signal.
SECONDS_TO_END = 1.0


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` at the first Ctrl-C or SIGTERM, which ends after the request in flight; end at once at the second."""

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    received, sent = socket.socketpair()
    sent.setblocking(False)
    # Python writes a byte there for every signal, even while dlt handles signals or DuckDB occupies the thread.
    writes_to = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second_signal, args=(received,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(writes_to)
        sent.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_second_signal(received: socket.socket) -> None:
    """End the process soon after the second signal: its threads may be waiting for a response or a disk."""
    count = 0
    with received:
        while numbers := received.recv(16):
            count += sum(number in (signal.SIGINT, signal.SIGTERM) for number in numbers)
            if count > 1:
                time.sleep(SECONDS_TO_END)
                os._exit(EXIT_STOPPED)
