"""Ways to damage a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "random": lambda path: path.write_bytes(b"\xff\xfe\x00\x80" * 20),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "another value": lambda path: path.write_text('[{"account": 1}]'),
    "folder": lambda path: (path.unlink(), path.mkdir(), (path / "what").touch()),
}
