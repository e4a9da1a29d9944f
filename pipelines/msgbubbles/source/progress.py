"""Keep the progress of messages. A status only moves forward, and the times of sending, delivery and reading are set
once: what arrives late, or was read from a replica that lags, takes nothing back.
"""

from __future__ import annotations

from .compare import Comparison
from .lazy_pyarrow import pa, pc

RANKS = {"queued": 0, "received": 0, "sent": 1, "failed": 2, "delivered": 3, "read": 4}
SET_ONCE = ("sent_at", "delivered_at", "read_at")


def get_status_rank(status: str | None) -> int | None:
    """Return the rank of a status; null for an unknown one."""
    return None if status is None else RANKS.get(status.lower())


def is_ahead(status: str | None, stored: str | None) -> bool:
    """Return whether a status is further than the stored one, as far as both are known. Each is further than none."""
    rank, stored_rank = get_status_rank(status), get_status_rank(stored)
    return rank is not None and (stored is None or (stored_rank is not None and rank > stored_rank))


def keep_progress(incoming: pa.Table, comparison: Comparison) -> pa.Table:
    """Return messages as the API shows them, with the stored progress where that is further.

    The API's values count where it shows a later `updated_at`, or none. A row that it does not claim to have changed
    since the stored one is older than the events that have changed that.
    """

    def column(name: str) -> pa.Array:
        return incoming.column(name).combine_chunks()

    unclaimed = pc.fill_null(pc.less_equal(column("updated_at"), comparison.stored("updated_at")), False)
    if not pc.any(unclaimed).as_py():
        return incoming
    stored = comparison.stored("status")
    behind = [is_ahead(old, new) for new, old in zip(column("status").to_pylist(), stored.to_pylist(), strict=True)]
    stays = {"status": (pa.array(behind, pa.bool_()), stored)}
    stays |= {name: (pc.is_null(column(name)), comparison.stored(name)) for name in SET_ONCE}
    for name, (mask, values) in stays.items():
        mask = pc.and_(mask, unclaimed)
        if pc.any(mask).as_py():
            place = incoming.schema.get_field_index(name)
            kept = pc.if_else(mask, values, column(name))
            incoming = incoming.set_column(place, incoming.schema.field(place), kept)
    return incoming
