"""The standard streams of a process, whose readers keep no work from being done."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgbubbles_sync.text import format_count

# The characters that an ASCII terminal shows in place of the symbols of progress and of `status`.
ASCII_SYMBOLS = {"█": "#", "▓": "*", "▒": "+", "░": ":", "·": ".", "…": "...", "→": "->"}
# How long work waits for the reader of its output.
PATIENCE_SECONDS = 10.0
NOT_READ = "nobody reads the output: it is left out until somebody does\n"


def open_output(stream: Any) -> io.TextIOWrapper:
    """Open a standard stream again, so that it never fails, and keeps no work waiting for long."""
    if stream is None:
        return io.TextIOWrapper(Path(os.devnull).open("wb"), encoding="utf-8")
    output = _Output(stream)
    is_immediate = stream.line_buffering or stream.write_through  # as with PYTHONUNBUFFERED
    return io.TextIOWrapper(output, stream.encoding, "symbols", line_buffering=is_immediate)


def replace_symbols(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(ASCII_SYMBOLS.get(character, "?") for character in text), error.end


def limit_waiting(is_limited: Callable[[], bool] = lambda: True) -> None:
    """Wait `PATIENCE_SECONDS` for readers of output from now on, and not until they go on, while this is so."""
    _Output.is_waiting_limited = staticmethod(is_limited)


class _Output(io.RawIOBase):
    """Writes a text as a whole, or not at all, and never fails.

    Once it has waited as long as it may, it leaves out what is written until the reader goes on.
    """

    is_waiting_limited: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, stream: Any) -> None:
        self._stream = stream  # closes the file when it is collected
        self._number: int = stream.fileno()
        self.name = stream.name
        self._rest = memoryview(b"")
        self._lines_left_out = 0
        self._lock = threading.Lock()  # progress is also written by a thread of rich

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any, /) -> int:
        content, message = bytes(data), ""
        with self._lock:
            self._write_rest(0)
            if self._rest:
                self._lines_left_out += content.count(b"\n")
                return len(content)
            if self._lines_left_out:
                message = f"{format_count(self._lines_left_out, 'line')} of output left out, because nobody read it\n"
                self._lines_left_out = 0
            self._rest = memoryview(content)
            if not self._write_rest(PATIENCE_SECONDS):
                message += NOT_READ
        if message and self.name != "<stderr>":
            sys.stderr.write(message)
        return len(content)

    def _write_rest(self, patience_seconds: float) -> bool:
        """Write what is not written yet, if that is possible. Returns false if the reader takes nothing."""
        with suppress(OSError):  # the reader has ended, or the disk is full
            while self._rest:
                while not select.select([], [self._number], [], patience_seconds)[1]:
                    if not patience_seconds or self.is_waiting_limited():
                        return False
                self._rest = self._rest[os.write(self._number, self._rest[: select.PIPE_BUF]) :]
        return True
