from __future__ import annotations

import base64
import gzip
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import msgspec
import pytest

from helpers.full_disk import full_disk
from helpers.hooks import KEY, SECRET, SETTINGS, WEBHOOKS, Served, load_all, receiving, signed, typing, workspace_in
from helpers.process import inherited_environment
from msgbubbles_sync.webhooks import receiver
from msgbubbles_sync.webhooks.heartbeat import read_last_beat
from msgbubbles_sync.webhooks.load import count_dead_letters
from msgbubbles_sync.webhooks.spool import Delivery, list_segments, spool_folder, take_finished, webhooks_folder


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with receiving(workspace_in(tmp_path)) as served:
        yield served


def stored(folder: Path) -> list[str]:
    """Return the ids of the stored events after the receiver has ended."""
    return [one.event_id for one in finished_deliveries(folder)]


def finished_deliveries(folder: Path) -> list[Delivery]:
    return [one for segment in take_finished(spool_folder(workspace_in(folder))) for one in segment.deliveries]


def test_event_is_on_disk_when_it_is_answered(tmp_path: Path) -> None:
    with receiving(workspace_in(tmp_path)) as served:
        assert served.post(typing(1)).status_code == 204
        lines = b"".join(path.read_bytes() for path in list_segments(spool_folder(workspace_in(tmp_path))))
        line = json.loads(lines)
        assert line["event_id"] == "evt_1"
        assert line["body"].encode() == typing(1)
        assert served.count("stored") == 1
        # The same delivery again, and the same event in another delivery.
        assert served.post(typing(1)).status_code == 204
        assert served.post(typing(1), delivery_id="msg_2").status_code == 204
        assert served.count("duplicate") == 2
    assert stored(tmp_path) == ["evt_1"]


def test_event_without_an_id_gets_that_of_the_delivery_or_a_hash(tmp_path: Path) -> None:
    body = b'{"event": "message.read", "id": "of-the-message", "status": "read"}'
    with receiving(workspace_in(tmp_path)) as served:
        for delivery_id in ("msg_1", "msg_1", "msg_2"):
            assert served.post(body, delivery_id=delivery_id).status_code == 204
    assert stored(tmp_path) == ["msg_1", "msg_2"]
    without = msgspec.structs.replace(SETTINGS, signed_content="{timestamp}.{body}")
    other = tmp_path / "other"
    other.mkdir()
    with receiving(workspace_in(other), without) as served:
        for sent, delivery_id in ((body, "msg_1"), (body, "msg_2"), (body.replace(b"read", b"sent"), "msg_3")):
            headers = signed_without_id(sent) | {"webhook-id": delivery_id}
            assert served.http.post(served.url, content=sent, headers=headers).status_code == 204
    hashes = stored(other)
    assert len(hashes) == 2
    assert all(one.startswith("body:") for one in hashes)


def test_repeated_typing_without_signed_ids_is_two_events(tmp_path: Path) -> None:
    body = b'{"type": "conversation.typing", "conversation_id": "c1", "typing": true}'
    now = time.time()
    without = msgspec.structs.replace(SETTINGS, signed_content="{timestamp}.{body}")
    in_signature = msgspec.structs.replace(without, signature_header="stripe-signature", timestamp_header="")
    for number, settings in enumerate((without, in_signature)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with receiving(workspace_in(folder), settings) as served:
            for at in (now - 200, now, now):
                headers = signed_without_id(body, at)
                both = f"t={headers['webhook-timestamp']},v1={headers['webhook-signature']}"
                headers = headers if number == 0 else {"stripe-signature": both}
                assert served.http.post(served.url, content=body, headers=headers).status_code == 204
            assert (served.count("stored"), served.count("duplicate")) == (2, 1)
        assert len(set(stored(folder))) == 2


def signed_without_id(body: bytes, at_seconds: float | None = None) -> dict[str, str]:
    at = str(int(time.time() if at_seconds is None else at_seconds))
    digest = hmac.digest(KEY, f"{at}.".encode() + body, "sha256")
    return {"webhook-timestamp": at, "webhook-signature": base64.b64encode(digest).decode()}


def test_forged_and_replayed_deliveries_are_refused_and_counted(tmp_path: Path) -> None:
    with receiving(workspace_in(tmp_path)) as served:
        assert served.post(typing(1), key=b"guessed").status_code == 401
        assert served.http.post(served.url, content=typing(1), headers=signed(typing(2))).status_code == 401
        assert served.post(typing(1), at=time.time() - 3600).status_code == 401
        assert served.http.post(served.url, content=typing(1)).status_code == 401
        packed = gzip.compress(typing(1))
        for headers in (signed(typing(2)), signed(typing(1), key=b"guessed"), {}):
            sent = served.http.post(served.url, content=packed, headers=headers | {"content-encoding": "gzip"})
            assert sent.status_code == 401
        assert served.http.get(served.url).status_code == 405
        assert served.http.post(served.url + "elsewhere", content=b"{}").status_code == 404
        counts = {name: served.count(name) for name in ("forged", "stale", "unsigned", "stored")}
        assert counts == {"forged": 4, "stale": 1, "unsigned": 2, "stored": 0}
        log = "\n".join(served.log)
        assert log.count("forged") == 1, "a flood of them is no flood of lines"
        assert "expected webhook-signature, webhook-id, webhook-timestamp, got host" in log
        assert "14155550123" not in log
    assert stored(tmp_path) == []


def test_unusual_json_is_stored(tmp_path: Path) -> None:
    bodies = [b'["batch"]', b'{"text": "\\ud83d"}', b'{"text": "\xff"}', b'{"id": "evt_\\ud83d"}', b'{"id": 5}']
    with receiving(workspace_in(tmp_path)) as served:
        for number, body in enumerate(bodies):
            assert served.post(body, delivery_id=f"msg_{number}").status_code == 204
        assert served.http.get(served.url + "health").status_code == 200
    assert stored(tmp_path) == [f"msg_{number}" for number in range(len(bodies))]


def test_signed_body_that_is_not_json_becomes_a_dead_letter(tmp_path: Path) -> None:
    bodies = [
        b"",
        b"{",
        b"{'a': 1}",
        b"[" * 100_000,
        b'[{"a": ' * 400 + b"1" + b"}]" * 400,
        b"\x00\xff",
        gzip.compress(b"{}")[:-3],
        b"a=1",
    ]
    lenient = [b'{"a": NaN}', b'\xef\xbb\xbf{"a": 1}', b'{"a": "1\n2"}', b"1e999", b'{"a": "\xff"}']
    with receiving(workspace_in(tmp_path)) as served:
        for number, body in enumerate([*bodies, *lenient]):
            assert served.post(body, delivery_id=f"msg_{number}").status_code == 204, body[:20]
        assert served.count("stored") == len(bodies) + len(lenient)
    workspace = workspace_in(tmp_path)
    result = load_all(workspace)
    assert (result.deliveries, result.malformed, count_dead_letters(workspace)) == (
        len(lenient),
        len(bodies),
        len(bodies),
    )


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_body_is_accepted_with_either_form_signed(
    tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    with receiving(workspace_in(tmp_path)) as served:
        for number in (1, 2):
            body = typing(number)
            headers = signed(body if number == 1 else pack(body)) | {"content-encoding": encoding}
            assert served.http.post(served.url, content=pack(body), headers=headers).status_code == 204
        # Decompressed by a proxy that keeps the header.
        headers = signed(typing(3)) | {"content-encoding": encoding}
        assert served.http.post(served.url, content=typing(3), headers=headers).status_code == 204
        bomb = pack(b"0" * 20_000_000)
        headers = signed(bomb) | {"content-encoding": encoding}
        assert served.http.post(served.url, content=bomb, headers=headers).status_code == 413
    found = [json.loads(one.body) for one in finished_deliveries(tmp_path)]
    assert found == [json.loads(typing(number)) for number in (1, 2, 3)]


def test_repeated_signature_headers_are_joined(served: Served) -> None:
    right = signed(typing(1))
    others = [("webhook-signature", "v1,AAAA"), ("webhook-signature", "v1a,BBBB v1,CCCC")]
    for lines in ([*others, *right.items()], [*right.items(), *others]):
        assert served.http.post(served.url, content=typing(1), headers=lines).status_code == 204
    wrong = [*others, *(right | {"webhook-signature": "v1,DDDD"}).items()]
    assert served.http.post(served.url, content=typing(1), headers=wrong).status_code == 401


def test_list_of_events_is_stored_one_by_one(tmp_path: Path) -> None:
    events = [json.loads(typing(1)), json.loads(typing(2)), {"type": "message.read", "message_id": "m1"}]
    with receiving(workspace_in(tmp_path)) as served:
        assert served.post(json.dumps(events).encode()).status_code == 204
        assert served.post(typing(2), delivery_id="msg_2").status_code == 204
        assert (served.count("stored"), served.count("duplicate")) == (3, 1)
    assert stored(tmp_path) == ["evt_1", "evt_2", "msg_1:2"]


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused(served: Served, chunked: bool) -> None:
    limit = SETTINGS.max_body_bytes
    for size in (limit + 1, 4 * limit):
        body = b'{"a": "' + b"x" * (size - 9) + b'"}'
        content = (body[start : start + 65536] for start in range(0, size, 65536)) if chunked else body
        answer = served.http.post(served.url, content=content, headers=signed(body))
        assert answer.status_code == 413
    assert served.count("too_long") == 2
    body = b'{"a": "' + b"x" * (limit - 9) + b'"}'
    assert len(body) == limit
    assert served.post(body).status_code == 204


def test_body_far_over_the_limit_is_not_read(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def connected(served: Served) -> socket.socket:
    url = httpx.URL(served.url)
    return socket.create_connection((url.host, url.port or 0), timeout=30)


def test_slow_head_or_body_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(receiver, "BODY_SECONDS", 0.5)
    # No head, half a head, a slow head, and half a body; also for the second request of a connection.
    first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for sent in (b"", b"POST / HTTP/1.1\r\nHost:", first + b"POST / HTTP/1.1\r\n"):
        with connected(served) as connection:
            connection.sendall(sent)
            if sent.startswith(first):
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
                connection.sendall(b"Host:")
            assert is_closed(connection), sent
    with connected(served) as connection, suppress(BrokenPipeError, ConnectionResetError):
        for byte in b"GET /health HTTP/1.1\r\nX-Drop: " + b"x" * 200:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
        pytest.fail("a head that drips is waited for")
    with connected(served) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        assert is_closed(connection)
    assert served.count("slow") == 1
    assert served.post(typing(1)).status_code == 204


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(20)
    try:
        while connection.recv(1000):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def test_connections_and_bodies_in_memory_are_limited(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(receiver, "MAX_BODIES_BYTES", 3000)
    assert served.post(typing(1)).status_code == 204
    assert served.post(typing(2, text="x" * 3000)).status_code == 503
    assert served.count("busy") == 1
    body = typing(4, text="x" * 3500)
    halves = (part for part in (body[:1800], body[1800:]) if not time.sleep(0.2))
    assert served.http.post(served.url, content=halves, headers=signed(body)).status_code == 503
    # Refused bodies are released.
    assert served.post(typing(3, text="x" * 2000)).status_code == 204
    served.http.close()
    time.sleep(0.2)
    many = [connected(served) for _ in range(8)]
    try:
        time.sleep(0.2)
        closed = [is_closed_now(one) for one in many]
        assert closed == [True] * 3 + [False] * 5, "the oldest ones that have sent nothing"
        with httpx.Client(trust_env=False) as http:
            assert http.post(served.url, content=typing(5), headers=signed(typing(5))).status_code == 204
    finally:
        for one in many:
            one.close()


def is_closed_now(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_secret_added_while_running_is_used(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path)
    secrets = workspace.folder / "secrets.toml"
    with receiving(workspace, secrets_file=secrets) as served:
        assert served.post(typing(1), key=b"another key, later").status_code == 401
        later = "whsec_YW5vdGhlciBrZXksIGxhdGVy"
        secrets.write_text(f'[webhooks]\nsecrets = ["{SECRET}", "{later}"]\n')
        assert served.post(typing(1), key=b"another key, later").status_code == 204
        assert served.post(typing(2)).status_code == 204
        # An invalid file does not remove the previous secrets.
        secrets.write_text("[webhooks\n")
        assert served.post(typing(3), key=b"guessed").status_code == 401
        assert served.post(typing(3)).status_code == 204
        assert receiver.STALE_SECRETS in served.log


def test_receiver_refuses_while_the_disk_does(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path)
    with receiving(workspace) as served:
        shutil.rmtree(spool_folder(workspace))
        assert served.post(typing(1)).status_code == 503
        assert served.http.get(served.url + "health").status_code == 503
        spool_folder(workspace).mkdir()
        assert served.post(typing(1)).status_code == 204
        assert served.http.get(served.url + "health").status_code == 200
    assert stored(tmp_path) == ["evt_1"]


# A receiver with a frequent heartbeat.
SERVE = (
    "from msgbubbles_sync.cli.webhooks import app; from msgbubbles_sync.webhooks import receiver; "
    "receiver.HEARTBEAT_SECONDS = 0.1; app()"
)


@pytest.mark.slow
def test_receiver_and_heartbeat_survive_a_full_disk(tmp_path: Path) -> None:
    secrets, workspace = tmp_path / "secrets.toml", workspace_in(tmp_path)
    secrets.write_text(f'[webhooks]\nsecrets = ["{SECRET}"]\n')
    options = ["--port", "0", "--database", str(workspace.database), "--secrets-file", str(secrets)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve", "--json", *options],
            cwd=WEBHOOKS.parent, env=inherited_environment(), stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        url = json.loads(process.stdout.readline() if process.stdout else "")["url"]
        with httpx.Client(trust_env=False, timeout=30) as http:

            def post(number: int) -> int:
                body = typing(number)
                return http.post(url, content=body, headers=signed(body, f"msg_{number}")).status_code

            assert post(1) == 204
            with full_disk(process.pid):
                assert [post(number) for number in range(2, 8)] == [503] * 6
                assert http.get(url + "health").status_code == 503
                stopped = read_last_beat(webhooks_folder(workspace))
                time.sleep(0.4)
                assert read_last_beat(webhooks_folder(workspace)) == stopped
            assert post(2) == 204
            assert http.get(url + "health").status_code == 200
            until = time.monotonic() + 30
            while read_last_beat(webhooks_folder(workspace)) == stopped and time.monotonic() < until:
                time.sleep(0.02)
            assert read_last_beat(webhooks_folder(workspace)) != stopped
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert stored(tmp_path) == ["evt_1", "evt_2"]
    assert not [path for path in webhooks_folder(workspace).rglob("*") if path.is_file() and not path.stat().st_size]


def test_receiver_answers_open_requests_before_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, begun = os.fsync, threading.Event()

    def slow_fsync(file: int) -> None:
        begun.set()
        time.sleep(0.7)
        fsync(file)

    answers: list[int] = []
    with receiving(workspace_in(tmp_path)) as served:
        monkeypatch.setattr(os, "fsync", slow_fsync)
        url, headers = served.url, signed(typing(1))
        sending = threading.Thread(
            target=lambda: answers.append(httpx.post(url, content=typing(1), headers=headers, timeout=30).status_code)
        )
        sending.start()
        assert begun.wait(30)
    sending.join(30)
    assert answers == [204]
    assert stored(tmp_path) == ["evt_1"]


@pytest.mark.parametrize("put", [lambda path: path.write_text(""), lambda path: path.symlink_to("nowhere")])
def test_file_in_the_place_of_heartbeats_keeps_no_delivery_from_being_stored(
    put: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = webhooks_folder(workspace_in(tmp_path))
    folder.mkdir()
    put(folder / "receivers")
    with receiving(workspace_in(tmp_path)) as served:
        assert served.post(typing(1)).status_code == 204
    assert read_last_beat(folder) is not None


def test_heartbeat_survives_a_short_break(tmp_path: Path) -> None:
    folder = webhooks_folder(workspace_in(tmp_path))
    with receiving(workspace_in(tmp_path)) as served:
        served.post(typing(1))
    first = read_last_beat(folder)
    assert first is not None
    assert first.last_event_at is not None
    with receiving(workspace_in(tmp_path)):
        pass
    second = read_last_beat(folder)
    assert second is not None
    assert (second.uninterrupted_since, second.last_event_at) == (first.uninterrupted_since, first.last_event_at)
    assert second.beat_at > first.beat_at
    old = msgspec.structs.replace(second, beat_at=second.beat_at.replace(year=2020))
    [path] = folder.glob("receivers/*/heartbeat.json")
    path.write_bytes(msgspec.json.encode(old))
    with receiving(workspace_in(tmp_path)):
        pass
    third = read_last_beat(folder)
    assert third is not None
    assert third.uninterrupted_since > second.uninterrupted_since
