"""Import dlt on first use: that takes more time than all else in a run that finds nothing to load."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dlt
    import dlt.common.json as dlt_json
    import dlt.common.libs.sql_alchemy_compat as sql_alchemy
    import dlt.common.schema as dlt_schema
    from dlt.common import exceptions as common_exceptions
    from dlt.common import versioned_state
    from dlt.common.destination import exceptions as destination_exceptions
    from dlt.destinations import sql_client
    from dlt.pipeline import exceptions as pipeline_exceptions
    from dlt.pipeline import state_sync
else:
    from msgbubbles.lazy_pyarrow import LazyModule

    dlt = LazyModule("dlt")
    common_exceptions = LazyModule("dlt.common.exceptions")
    destination_exceptions = LazyModule("dlt.common.destination.exceptions")
    dlt_json = LazyModule("dlt.common.json")
    dlt_schema = LazyModule("dlt.common.schema")
    pipeline_exceptions = LazyModule("dlt.pipeline.exceptions")
    sql_alchemy = LazyModule("dlt.common.libs.sql_alchemy_compat")
    sql_client = LazyModule("dlt.destinations.sql_client")
    state_sync = LazyModule("dlt.pipeline.state_sync")
    versioned_state = LazyModule("dlt.common.versioned_state")

__all__ = [
    "common_exceptions", "destination_exceptions", "dlt", "dlt_json", "dlt_schema", "pipeline_exceptions",
    "sql_alchemy", "sql_client", "state_sync", "versioned_state",
]  # fmt: skip
