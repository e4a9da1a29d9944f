"""The account's webhook endpoints: made, listed, and given a new secret without an event that nobody can verify."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from msgbubbles.client import Client
from msgbubbles.models import Webhook
from msgbubbles_sync.errors import UsageError

from .secrets import SecretStore


@dataclass(frozen=True)
class Made:
    """An endpoint that was made. `secret` is null where it was stored in `stored_in`. `replaces` is the endpoint that
    it takes the place of, removed or not.
    """

    id: str
    url: str
    events: Sequence[str]
    secret: str | None
    stored_in: str | None
    replaces: str | None = None
    is_replaced: bool = False

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"id": self.id, "url": self.url, "events": list(self.events)}
        found |= {"stored_in": self.stored_in} if self.secret is None else {"secret": self.secret}
        return found | ({"replaces": self.replaces, "removed": self.is_replaced} if self.replaces else {})

    def __str__(self) -> str:
        lines = [f"{self.id} sends {', '.join(self.events)} to {self.url}."]
        if self.secret is None:
            lines.append(f"Its signing secret is in {self.stored_in}; a receiver that runs takes it from there.")
        else:
            lines.append(f"Its signing secret, which nobody shows again: {self.secret}")
            lines.append("Give it to the receiver as WEBHOOKS__SECRETS, or in secrets of [webhooks].")
        if self.replaces:
            lines.append(
                f"{self.replaces} is removed; its secret may be taken out of the file in an hour."
                if self.is_replaced
                else f"Once the receiver has it: webhooks.py remove {self.replaces}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Listed:
    """An endpoint as the API shows it."""

    webhook: Webhook

    def as_dict(self) -> dict[str, Any]:
        created_at = self.webhook.created_at
        return {
            "id": self.webhook.id,
            "url": self.webhook.url,
            "events": self.webhook.events,
            "created_at": created_at.isoformat(timespec="seconds") if created_at else None,
        }

    def __str__(self) -> str:
        return f"{self.webhook.id}  {self.webhook.url}  {', '.join(self.webhook.events or ())}"


def registered(client: Client, url: str, events: Sequence[str], store: SecretStore | None) -> Made:
    """Make an endpoint. Its secret goes into `store`, or into the result where there is none.

    Raises `UsageError` before anything is asked where the secret could not be stored.
    """
    if store is not None:
        store.check_writable()
    return _made(client.create_webhook(url, events), url, events, store)


def listed(client: Client) -> list[Listed]:
    return [Listed(webhook) for webhook in client.list_webhooks().rows]


def rotated(client: Client, webhook_id: str, store: SecretStore | None) -> Made:
    """Make another endpoint like this one, and remove this one once the receiver can know the new secret. Until then
    both send: what comes twice is stored once. Without `store`, this one stays.
    """
    webhook = next((one for one in client.list_webhooks().rows if one.id == webhook_id), None)
    if webhook is None or webhook.url is None or webhook.events is None:
        raise UsageError(f"there is no endpoint {webhook_id} whose URL and events the API shows; see webhooks.py list")
    made = registered(client, webhook.url, webhook.events, store)
    if made.secret is None:
        client.delete_webhook(webhook_id)
    return Made(
        made.id, made.url, made.events, made.secret, made.stored_in, webhook_id, is_replaced=made.secret is None
    )


def _made(webhook: Webhook, url: str, events: Sequence[str], store: SecretStore | None) -> Made:
    if not webhook.secret:
        raise UsageError(
            f"{webhook.id} was made, and the API has shown no secret: without it nothing it sends can be verified; "
            f"webhooks.py remove {webhook.id}, and see how the vendor's own pages hand it out"
        )
    is_stored = False
    if store is not None:
        with suppress(UsageError):  # then it is shown, because nobody shows it again
            store.add(webhook.secret)
            is_stored = True
    return Made(
        webhook.id,
        webhook.url or url,
        webhook.events or events,
        secret=None if is_stored else webhook.secret,
        stored_in=str(store.path) if store is not None and is_stored else None,
    )
