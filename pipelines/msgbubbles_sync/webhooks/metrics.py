"""Metrics of the receiver for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The metrics that `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.deliveries = Counter(
            "msgbubbles_webhook_deliveries",
            "Deliveries by outcome: stored, duplicate, or the reason of a refusal.",
            ["outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "msgbubbles_webhook_store_seconds",
            "Seconds from the head of a delivery until it was on disk.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self.bodies_bytes = Gauge("msgbubbles_webhook_bodies_bytes", "Bodies in memory.", registry=self.registry)
        self.spool_segments = Gauge("msgbubbles_webhook_spool_segments", "Spool files to load.", registry=self.registry)
        self.spool_bytes = Gauge("msgbubbles_webhook_spool_bytes", "Spool bytes to load.", registry=self.registry)
        self.syncs = Gauge("msgbubbles_webhook_spool_syncs", "Number of disk syncs.", registry=self.registry)
        self.last_event = Gauge(
            "msgbubbles_webhook_last_event_timestamp_seconds", "Time of the last event.", registry=self.registry
        )
