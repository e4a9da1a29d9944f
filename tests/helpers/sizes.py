"""What is tried on every change, and what at night only (`NIGHTLY=1`), because it takes some minutes more."""

import os

import pytest

IS_NIGHTLY = os.environ.get("NIGHTLY") == "1"
nightly = pytest.mark.skipif(not IS_NIGHTLY, reason="run by NIGHTLY=1 make test")


def pick_size(usual: int, nightly: int) -> int:
    """Return the number of examples, kills or runs."""
    return nightly if IS_NIGHTLY else usual
