"""How much random tests try. `NIGHTLY=1` tries more, and takes some minutes more."""

import os

IS_NIGHTLY = os.environ.get("NIGHTLY") == "1"


def pick_size(usual: int, nightly: int) -> int:
    """Return the number of examples for this run."""
    return nightly if IS_NIGHTLY else usual
