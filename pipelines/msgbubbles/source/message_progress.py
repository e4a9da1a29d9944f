"""Preserve the progress of messages.

A status only moves forward, and the times of sending, delivery and reading are set once. Data that arrives late, or
comes from a replica that lags behind, reverts nothing.
"""

from __future__ import annotations

from msgbubbles.lazy_pyarrow import pa, pc

from .compare import Comparison

RANKS = {"queued": 0, "received": 0, "sent": 1, "failed": 2, "delivered": 3, "read": 4}
SET_ONCE = ("sent_at", "delivered_at", "read_at")


def get_status_rank(status: str | None) -> int | None:
    return None if status is None else RANKS.get(status.lower())


def is_ahead(status: str | None, stored: str | None) -> bool:
    """Return whether a status is further than the stored one. An unknown status never is; any is further than null."""
    rank, stored_rank = get_status_rank(status), get_status_rank(stored)
    return rank is not None and (stored is None or (stored_rank is not None and rank > stored_rank))


def keep_progress(incoming: pa.Table, comparison: Comparison) -> pa.Table:
    """Return messages as the API shows them, with the stored progress where that is further.

    If the API shows a later `updated_at`, or none, its values win. Otherwise the row is older than the events that have
    updated the stored one.
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
            index = incoming.schema.get_field_index(name)
            merged = pc.if_else(mask, values, column(name))
            incoming = incoming.set_column(index, incoming.schema.field(index), merged)
    return incoming
