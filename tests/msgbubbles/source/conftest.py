from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def small_parts() -> Iterator[None]:
    """Make workers share even small intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msgbubbles.source.intervals.INTERVAL_PAGES", 1)
        patch.setattr("msgbubbles.source.intervals.PAGES_BEFORE_SPLIT", 1)
        yield
