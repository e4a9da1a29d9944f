"""Create and list the account's webhook endpoints, and replace their secrets without losing events."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from msgbubbles.client import Client
from msgbubbles.errors import (
    ApiError,
    ConfigurationError,
    MsgBubblesError,
    NotFoundError,
    RateLimitedError,
    RetryableError,
    UnreachableError,
)
from msgbubbles.models import Webhook
from msgbubbles_sync.errors import UsageError

from .secrets import SecretStore

ABOUT_DELIVERIES = re.compile("last|fail|error|success|deliver|status|enabled|disabled")


@dataclass(frozen=True)
class NewEndpoint:
    """An endpoint that was created.

    `secret` is null if it was stored in `stored_in`. `replaces` is the id of an endpoint that this one replaces; if it
    could not be removed, `failure` is why.
    """

    id: str
    url: str
    events: Sequence[str]
    secret: str | None
    stored_in: str | None
    replaces: str | None = None
    is_old_removed: bool = False
    failure: str = ""

    def as_dict(self) -> dict[str, object]:
        values: dict[str, object] = {"id": self.id, "url": self.url, "events": list(self.events)}
        values |= {"stored_in": self.stored_in} if self.secret is None else {"secret": self.secret}
        return values | ({"replaces": self.replaces, "removed": self.is_old_removed} if self.replaces else {})

    def __str__(self) -> str:
        lines = [f"{self.id} sends {', '.join(self.events)} to {self.url}."]
        if self.secret is None:
            lines.append(f"Its signing secret is stored in {self.stored_in}; a running receiver picks it up.")
        else:
            lines.append(f"Its signing secret, which is not shown again: {self.secret}")
            lines.append("Pass it to the receiver as WEBHOOKS__SECRETS, or as secrets in [webhooks].")
        if self.replaces:
            lines.append(
                f"{self.replaces} is removed. You can delete its secret from the file in an hour."
                if self.is_old_removed
                else f"Once the receiver has it, run: webhooks.py remove {self.replaces}"
            )
        return "\n".join(lines)


def refuse_second_endpoint(client: Client, url: str) -> None:
    """Raise `UsageError` if an endpoint sends to `url` already. An API that does not list endpoints refuses nothing."""
    with suppress(ApiError), client.transport.at_most(1, patience_seconds=0.0):
        for webhook in client.list_webhooks().rows:
            if webhook.url == url:
                raise UsageError(
                    f"{webhook.id} sends to {url} already. Replace its secret with webhooks.py rotate {webhook.id}, "
                    f"remove it with webhooks.py remove {webhook.id}, or pass --yes to create a second endpoint."
                )


def register_endpoint(client: Client, url: str, events: Sequence[str], store: SecretStore | None) -> NewEndpoint:
    """Create an endpoint. Its secret is written to `store`, or returned if `store` is null.

    Raises `UsageError` before the request if the secret cannot be stored, and as the client does.
    """
    if store is not None:
        store.check_writable()
    try:
        webhook = client.create_webhook(url, events)
    except (UnreachableError, RateLimitedError):
        raise
    except RetryableError as error:
        message = (
            f"{error}. The endpoint may exist all the same: if webhooks.py list shows it, remove it before you retry"
        )
        raise RetryableError(message, status=error.status, code=error.code) from None
    if not webhook.secret:
        raise UsageError(
            f"{webhook.id} was created, but the API returned no secret, so its events cannot be verified. Run "
            f"webhooks.py remove {webhook.id}, and check the API's own pages for the secret."
        )
    is_stored = False
    if store is not None:
        with suppress(ConfigurationError):  # the secret is then shown, because the API does not show it again
            store.add(webhook.secret)
            is_stored = True
    return NewEndpoint(
        webhook.id,
        webhook.url or url,
        webhook.events or events,
        secret=None if is_stored else webhook.secret,
        stored_in=str(store.path) if store is not None and is_stored else None,
    )


def endpoint_dict(webhook: Webhook) -> dict[str, object]:
    """Return an endpoint as JSON, without its secret."""
    created_at = webhook.created_at.isoformat(timespec="seconds") if webhook.created_at else None
    values = {"id": webhook.id, "url": webhook.url, "events": webhook.events, "created_at": created_at}
    return values | {"delivery": read_delivery_fields(webhook)}


def read_delivery_fields(webhook: Webhook) -> dict[str, object]:
    """Return the undocumented fields of an endpoint that look like they are about its deliveries."""
    extra = json.loads(bytes(webhook.extra) or b"{}")
    return {name: value for name, value in extra.items() if ABOUT_DELIVERIES.search(name) and "secret" not in name}


def rotate_secret(client: Client, webhook_id: str, store: SecretStore | None) -> NewEndpoint:
    """Create an endpoint like an existing one, then remove that one if the new secret was stored.

    In between, both send, and each event is stored once.
    """
    webhook = next((webhook for webhook in client.list_webhooks().rows if webhook.id == webhook_id), None)
    if webhook is None or webhook.url is None or webhook.events is None:
        raise UsageError(f"the API has no endpoint {webhook_id} with a URL and events. Check webhooks.py list.")
    endpoint = register_endpoint(client, webhook.url, webhook.events, store)
    endpoint = replace(endpoint, replaces=webhook_id, is_old_removed=endpoint.secret is None)
    try:
        if endpoint.is_old_removed:
            client.delete_webhook(webhook_id)
    except NotFoundError:
        pass
    except MsgBubblesError as error:  # both send, and the new secret is stored
        return replace(endpoint, is_old_removed=False, failure=f"{webhook_id} could not be removed: {error}")
    return endpoint
