"""Import pyarrow on first use.

The import takes a third of a second, and one where pandas is installed. A run that finds nothing to load does not need
it, nor does a command that refuses its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
else:
    from .lazy_module import LazyModule

    pa, pc, pq = LazyModule("pyarrow"), LazyModule("pyarrow.compute"), LazyModule("pyarrow.parquet")

__all__ = ["pa", "pc", "pq"]
