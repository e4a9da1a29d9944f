from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from helpers.context import build_context
from helpers.hooks import receiving, workspace_in
from msgbubbles.client import Client
from msgbubbles.errors import NotFoundError, PermanentError, RetryableError
from msgbubbles.models import Webhook
from msgbubbles.transport import Transport
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.sandbox import Account, Server, serve
from msgbubbles_sync.webhooks import endpoints
from msgbubbles_sync.webhooks.events import KNOWN_TYPES
from msgbubbles_sync.webhooks.secrets import SecretStore
from msgbubbles_sync.webhooks.spool import spool_folder, take_finished

URL = "https://example.com/hooks"


@pytest.fixture
def server() -> Iterator[Server]:
    account = Account()
    with serve(account) as server:
        yield server
    account.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(Transport(server.url, server.key, None)) as client:
        yield client


def test_secret_is_stored_privately_in_the_given_file(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "secrets.toml"
    path.write_text('# mine\n[sources.msgbubbles]\napi_key = "sk_live"\n\n[webhooks]\nsecrets = "whsec_b2Y="  # old\n')
    made = endpoints.register_endpoint(client, URL, KNOWN_TYPES, SecretStore(path))
    assert (made.url, list(made.events), made.secret, made.stored_in) == (URL, list(KNOWN_TYPES), None, str(path))
    text = path.read_text()
    assert text.startswith('# mine\n[sources.msgbubbles]\napi_key = "sk_live"\n')
    assert len(SecretStore(path).secrets) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SecretStore(path).secrets[1] not in f"{made} {made.as_dict()}"
    (listed,) = map(endpoints.endpoint_dict, client.list_webhooks().rows)
    assert (listed["id"], listed["url"], "secret" in listed) == (made.id, URL, False)


def test_second_endpoint_of_a_url_is_refused_if_the_api_lists_the_first(server: Server, client: Client) -> None:
    endpoints.refuse_second_endpoint(client, URL)
    first = endpoints.register_endpoint(client, URL, KNOWN_TYPES, None)
    endpoints.refuse_second_endpoint(client, f"{URL}/other")
    with pytest.raises(
        UsageError, match=f"{first.id} sends to {URL} already.* rotate {first.id}, .* remove {first.id}"
    ):
        endpoints.refuse_second_endpoint(client, URL)
    server.knobs.refusal = lambda *_: (404, "not_found")
    endpoints.refuse_second_endpoint(client, URL)


def test_no_secret_is_requested_that_cannot_be_stored(server: Server, client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = tmp_path / "broken.toml"
    store = SecretStore(broken)
    broken.write_text("[webhooks\n")
    for one in (SecretStore(tmp_path / "file" / "secrets.toml"), store):
        with pytest.raises(UsageError, match="cannot be written"):
            endpoints.register_endpoint(client, URL, KNOWN_TYPES, one)
    assert server.requests == []
    assert broken.read_text() == "[webhooks\n"


def test_secret_is_shown_if_storing_fails(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SecretStore(tmp_path / "secrets.toml")

    def full(_secret: str) -> None:
        raise UsageError("the disk is full now")

    monkeypatch.setattr(store, "add", full)
    made = endpoints.register_endpoint(client, URL, KNOWN_TYPES, store)
    assert made.secret
    assert made.secret in str(made)


def test_secret_is_not_stored_if_the_environment_overrides_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOKS__SECRETS", '["whsec_b2Y=", "second"]')
    store = SecretStore.from_context(
        build_context(workspace_in(tmp_path)), sandbox=False, path=tmp_path / "secrets.toml"
    )
    assert store.secrets == ("whsec_b2Y=", "second")
    with pytest.raises(UsageError, match="WEBHOOKS__SECRETS is set"):
        endpoints.register_endpoint(client, URL, KNOWN_TYPES, store)


def test_rotation_loses_no_event(server: Server, client: Client, tmp_path: Path) -> None:
    workspace, path = workspace_in(tmp_path), tmp_path / "secrets.toml"
    account, deliverer = server.account, server.deliverer
    with receiving(workspace, secrets_file=path) as served:
        first = endpoints.register_endpoint(client, served.url, KNOWN_TYPES, SecretStore(path))
        account.type("c1", "+14155550123", True, datetime.now(UTC))
        assert deliverer.wait_until_delivered(timeout_seconds=60)
        second = endpoints.rotate_secret(client, first.id, SecretStore(path))
        assert (second.replaces, second.is_old_removed, second.url) == (first.id, True, served.url)
        account.type("c1", "+14155550123", False, datetime.now(UTC))
        assert deliverer.wait_until_delivered(timeout_seconds=60)
        assert served.count("stored") == 2
        # If the secret is only shown, the old endpoint stays.
        third = endpoints.rotate_secret(client, second.id, None)
        assert (third.secret or "").startswith("whsec_")
        assert not third.is_old_removed
        assert {one.id for one in client.list_webhooks().rows} == {second.id, third.id}
    assert sum(len(segment.deliveries) for segment in take_finished(spool_folder(workspace))) == 2
    for one in (second, third):
        client.delete_webhook(one.id)
    assert client.list_webhooks().rows == []
    with pytest.raises(NotFoundError):
        client.delete_webhook(second.id)
    with pytest.raises(UsageError, match=r"webhooks.py list"):
        endpoints.rotate_secret(client, "nobody", None)


def test_rotation_shows_the_new_endpoint_if_the_old_one_cannot_be_removed(
    server: Server, client: Client, tmp_path: Path
) -> None:
    store = SecretStore(tmp_path / "secrets.toml")
    first = endpoints.register_endpoint(client, URL, KNOWN_TYPES, store)
    server.knobs.refusal = lambda method, _path: (403, "forbidden") if method == "DELETE" else None
    second = endpoints.rotate_secret(client, first.id, store)
    assert {row.id for row in client.list_webhooks().rows} == {first.id, second.id}
    assert f"{first.id} could not be removed: the API answered 403 forbidden" in second.failure
    assert f"webhooks.py remove {first.id}" in str(second)


def test_endpoint_that_may_have_been_created_is_mentioned(server: Server, client: Client) -> None:
    server.knobs.write_answer = 200, b'{"id":'
    with client.transport.at_most(1), pytest.raises(RetryableError, match=r"malformed answer.*may exist all the same"):
        endpoints.register_endpoint(client, URL, KNOWN_TYPES, None)
    assert len(client.list_webhooks().rows) == 1


def test_invalid_url_is_refused_by_the_api(client: Client) -> None:
    with pytest.raises(PermanentError) as caught:
        endpoints.register_endpoint(client, "http://example.com/", KNOWN_TYPES, None)
    assert caught.value.code == "invalid_url"


def test_endpoint_shows_what_the_api_says_about_its_deliveries() -> None:
    extra = b'{"last_delivery_at": "2026-11-23T10:00:00Z", "failure_count": 3, "last_secret": "whsec_b2Y=", "color": 1}'
    webhook = Webhook(id="wh_1", url=URL, extra=msgspec.Raw(extra))
    delivery = {"last_delivery_at": "2026-11-23T10:00:00Z", "failure_count": 3}
    assert endpoints.endpoint_dict(webhook)["delivery"] == delivery
    assert endpoints.read_delivery_fields(Webhook(id="wh_1")) == {}
