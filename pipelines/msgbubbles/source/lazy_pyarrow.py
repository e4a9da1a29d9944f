"""Import pyarrow on first use.

The import takes a second where pandas is installed; a run that finds nothing to load does not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
else:

    class _Module:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            value = getattr(importlib.import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    pa, pc = _Module("pyarrow"), _Module("pyarrow.compute")

__all__ = ["pa", "pc"]
