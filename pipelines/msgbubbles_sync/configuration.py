"""Find the configuration of the application, and raise its faults as usage errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgbubbles import configuration
from msgbubbles.errors import ConfigurationError

from .errors import UsageError
from .workspace import ROOT


def configuration_folder() -> Path:
    """Return the folder of the configuration, which dlt reads as well."""
    return Path(os.environ.get("DLT_PROJECT_DIR", str(ROOT)), os.environ.get("DLT_CONFIG_FOLDER", "dlt_config"))


@contextmanager
def raising_usage_errors() -> Iterator[None]:
    """Raise a `ConfigurationError` in the block as a `UsageError`."""
    try:
        yield
    except ConfigurationError as error:
        raise UsageError(str(error)) from None


@raising_usage_errors()
def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a missing file is empty. Raises `UsageError`, which quotes nothing of it."""
    return configuration.read_toml(path)
