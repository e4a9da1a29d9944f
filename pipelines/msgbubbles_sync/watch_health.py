"""The state of a watch for supervisors and Prometheus: `/health` and `/metrics`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, make_wsgi_app

from .errors import UsageError
from .watch import Cycle

# A watch is unhealthy if its last success is older than so many intervals, and this many seconds.
MAX_INTERVALS = 3
MIN_SECONDS = 900.0


class Health:
    """The metrics of a watch. Its process is in them: CPU time, memory, open files."""

    def __init__(self, every_seconds: float, find_error: Callable[[], str] = str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._max_age_seconds = max(MAX_INTERVALS * every_seconds, MIN_SECONDS)
        # Healthy until the first run has had its time.
        self._succeeded_at = time.monotonic()
        self._error: str | None = None
        self._find_error = find_error  # of what is no cycle
        prefix, registry = "msgbubbles_watch", self.registry
        self._cycles = Counter(
            f"{prefix}_cycles", "Cycles, by kind and exit status.", ["kind", "status"], registry=registry
        )
        self._last_success = Gauge(
            f"{prefix}_last_success_timestamp_seconds",
            "Start of the last run that ended with 0 or 3.",
            registry=registry,
        )
        self._lag = Gauge(f"{prefix}_lag_seconds", "Seconds since then.", registry=registry)
        self._lag.set_function(lambda: time.monotonic() - self._succeeded_at)
        self._requests = Counter(f"{prefix}_requests", "Requests to the API.", registry=registry)
        self._requests_left = Gauge(f"{prefix}_requests_left", "Requests left in this minute.", registry=registry)
        self._rows = Gauge(f"{prefix}_rows", "Rows, by table.", ["table"], registry=registry)
        self._cost = Gauge(f"{prefix}_cycle_cost_seconds", "CPU time of the last cycle.", ["kind"], registry=registry)

    def add(self, cycle: Cycle) -> None:
        """Count a cycle."""
        kind = "full" if cycle.is_full else "events"
        status = "locked" if cycle.outcome is None else str(cycle.outcome.exit_status)
        self._cycles.labels(kind, status).inc()
        self._cost.labels(kind).set(cycle.cost_seconds)
        if cycle.outcome is not None:
            self._error = cycle.outcome.message if cycle.has_failed else None
        if cycle.is_full and status in ("0", "3"):
            self._succeeded_at = cycle.started_at
            self._last_success.set(time.time() - (time.monotonic() - cycle.started_at))
        if cycle.report is not None:
            traffic = cycle.report.run.traffic
            self._requests.inc(traffic.total)
            if traffic.window_limit:
                self._requests_left.set(max(traffic.window_limit - traffic.window_requests, 0))
            for table, count in cycle.report.rows_in_warehouse.items():
                self._rows.labels(table).set(count)

    @property
    def is_healthy(self) -> bool:
        return time.monotonic() - self._succeeded_at <= self._max_age_seconds

    def as_dict(self) -> dict[str, object]:
        """Return the answer of `/health`."""
        age = round(time.monotonic() - self._succeeded_at, 1)
        return {"healthy": self.is_healthy, "seconds_since_success": age, "error": self._find_error() or self._error}


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log no requests."""


@contextmanager
def serve_health(health: Health, address: tuple[str, int]) -> Iterator[str]:
    """Serve until the block ends, and yield the URL. Raises `UsageError` if the port cannot be listened on."""
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(health.registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start_response)
        status = "404 Not Found"
        if environ["PATH_INFO"] == "/health":
            status = "200 OK" if health.is_healthy else "503 Service Unavailable"
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(health.as_dict()).encode()]

    try:
        server = make_server(*address, app, handler_class=_Handler)
    except OSError as error:
        raise UsageError(f"--health-port: {address[0]}:{address[1]} cannot be listened on ({error.strerror})") from None
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{address[0]}:{server.server_port}"
        finally:
            server.shutdown()
