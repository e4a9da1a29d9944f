"""Send a signed test event to a receiver, as the API would, and say how it was answered."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx

from msgbubbles.transport import is_loopback
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import WebhookSettings

from .deliveries import TEST_EVENT
from .signature import sign
from .spool import list_segments

TIMEOUT_SECONDS = 10.0
# The fix for each answer.
FIXES = {
    401: (
        "its signature is wrong there. Restart a receiver that has WEBHOOKS__SECRETS, compare signature_header and "
        "signed_content, and check both clocks"
    ),
    403: "something in front of the receiver refuses it. Let POST requests through to the receiver's path",
    404: "the path is wrong. Compare it with [webhooks] path and with the proxy",
    405: "the path is wrong. Compare it with [webhooks] path and with the proxy",
    413: "the body is too long. Raise max_body_bytes, or the limit of the proxy",
    502: "the proxy does not reach the receiver. Start webhooks.py serve, and check the proxy's target",
    503: "the receiver cannot store it. Read its log",
}


@dataclass(frozen=True)
class ProbeResult:
    """How a test event was answered.

    `status` is null if there was no answer. `fix` is null if it was accepted. `is_in_spool`: it is in the spool of this
    workspace.
    """

    url: str
    event_id: str
    status: int | None
    milliseconds: int
    fix: str | None
    is_in_spool: bool = False

    def as_dict(self) -> dict[str, object]:
        return {
            "url": self.url,
            "event_id": self.event_id,
            "accepted": self.fix is None,
            "status": self.status,
            "milliseconds": self.milliseconds,
            "in_spool": self.is_in_spool,
            "fix": self.fix,
        }

    def __str__(self) -> str:
        answer = "no answer" if self.status is None else f"{self.status} in {self.milliseconds} ms"
        if self.fix is not None:
            return f"Not accepted by {self.url} ({answer}): {self.fix}."
        where = (
            "It is in the spool, and the next load stores it as an event of type webhook.test."
            if self.is_in_spool
            else "It is not in the spool of this workspace: it is loaded already, or the receiver has another "
            "--database, --account or --destination."
        )
        return f"Accepted by {self.url} ({answer}). {where}"


def build_local_url(settings: WebhookSettings) -> str:
    """Return the URL at which a receiver with these settings listens on this machine."""
    if settings.port == 0:
        raise UsageError("[webhooks] port is 0, a free port. Pass the URL that webhooks.py serve prints")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}{settings.path}"


def send_test_event(url: str, settings: WebhookSettings, secret: str, spool: Path) -> ProbeResult:
    """Send a test event, signed with this secret. Raises `UsageError` for an invalid URL."""
    event_id = f"{TEST_EVENT}{uuid4().hex}"
    event = {"id": event_id, "type": "webhook.test", "created_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    body = json.dumps(event).encode()
    headers = sign(settings, secret, event_id, str(int(time.time())), body)
    began = time.perf_counter()
    try:
        # A proxy of the environment does not know this machine's own addresses.
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=not is_loopback(httpx.URL(url).host)) as http:
            status = http.post(url, content=body, headers={"content-type": "application/json"} | headers).status_code
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise UsageError(f"{url} is not a URL. Pass one like https://hooks.example.com/") from None
    except httpx.TransportError as error:
        return ProbeResult(url, event_id, None, _measure_ms(began), _explain_transport_error(error))
    milliseconds = _measure_ms(began)
    if status == 204:
        is_in_spool = any(event_id.encode() in path.read_bytes() for path in reversed(list_segments(spool)))
        return ProbeResult(url, event_id, status, milliseconds, None, is_in_spool)
    if 200 <= status < 300:
        fix = "another program answers there, because the receiver answers 204. Check the URL and the proxy"
    elif 300 <= status < 400:
        fix = "it is redirected, which the API may not follow. Register the URL that it leads to"
    else:
        fix = FIXES.get(status, "the receiver does not answer so. Check the URL and the proxy")
    return ProbeResult(url, event_id, status, milliseconds, fix)


def _explain_transport_error(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"nothing came within {TIMEOUT_SECONDS:.0f} s. Check the firewall and the proxy"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its certificate is not valid. Renew it, because the API would refuse it, too"
    if isinstance(error, httpx.ConnectError):
        return "nothing listens there. Start webhooks.py serve, or check the host and the port"
    return f"the connection failed ({type(error).__name__}). Check the URL and the proxy"


def _measure_ms(began: float) -> int:
    return round((time.perf_counter() - began) * 1000)
