"""A test event: signed by every scheme, answered by our receiver or by something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from helpers.hooks import SECRET, SETTINGS, load_all, receiving, workspace_in
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import WebhookSettings
from msgbubbles_sync.webhooks.heartbeat import read_last_beat
from msgbubbles_sync.webhooks.probe import build_local_url, send_test_event
from msgbubbles_sync.webhooks.spool import list_segments, spool_folder, webhooks_folder


@contextmanager
def answering(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # as the class calls it
            self.send_response(status)
            self.send_header("Location", "https://hooks.example.com/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(
    "scheme",
    [
        {},
        {"signature_header": "x-signature", "timestamp_header": "", "signed_content": "{timestamp}.{body}"},
        {"signature_header": "x-hub-signature", "signed_content": "{body}", "digest": "sha512"},
    ],
)
def test_receiver_accepts_a_test_event_of_every_scheme(tmp_path: Path, scheme: dict[str, str]) -> None:
    workspace, settings = workspace_in(tmp_path), msgspec.structs.replace(SETTINGS, **scheme)
    with receiving(workspace, settings) as served:
        result = send_test_event(served.url, settings, SECRET, spool_folder(workspace))
        assert (result.status, result.fix, result.is_in_spool) == (204, None, True)
        assert "It is in the spool" in str(result)
        elsewhere = send_test_event(served.url, settings, SECRET, tmp_path / "other")
        assert (elsewhere.fix, elsewhere.is_in_spool) == (None, False)
        refused = send_test_event(served.url, settings, "whsec_b2Y=", spool_folder(workspace))
        assert refused.status == 401
        assert "its signature is wrong there" in str(refused)
        assert "b2Y" not in str(refused.as_dict())
    beat = read_last_beat(webhooks_folder(workspace))
    assert beat is not None
    assert beat.last_event_at is None, "a test event says nothing about the events of the API"


def test_test_event_is_loaded_as_an_event(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path)
    with receiving(workspace) as served:
        send_test_event(served.url, SETTINGS, SECRET, spool_folder(workspace))
    result = load_all(workspace)
    assert (result.deliveries, result.malformed) == (1, 0)
    assert list_segments(spool_folder(workspace)) == []


@pytest.mark.parametrize(
    ("status", "fix"),
    [(200, "another program answers there"), (308, "it is redirected"), (404, "the path is wrong"), (418, "Check")],
)
def test_other_answers_are_explained(tmp_path: Path, status: int, fix: str) -> None:
    with answering(status) as url:
        result = send_test_event(url, SETTINGS, SECRET, tmp_path)
    assert result.status == status
    assert fix in (result.fix or "")
    assert str(result).startswith(f"Not accepted by {url} ({status} in ")


def test_missing_receiver_and_wrong_urls_are_explained(tmp_path: Path) -> None:
    with answering(204) as url:
        pass
    result = send_test_event(url, SETTINGS, SECRET, tmp_path)
    assert (result.status, "nothing listens there" in str(result)) == (None, True)
    for wrong in ("hooks.example.com", "ftp://hooks.example.com/", "https://host:port/"):
        with pytest.raises(UsageError, match="is not a URL"):
            send_test_event(wrong, SETTINGS, SECRET, tmp_path)
    assert build_local_url(WebhookSettings(host="::", port=1, path="/a")) == "http://[::1]:1/a"
    with pytest.raises(UsageError, match="port is 0"):
        build_local_url(SETTINGS)
