"""Tap of the Meltano Singer SDK: reads both lists, newest first, back to the previous run's newest row."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from singer_sdk import RESTStream, Tap
from singer_sdk import typing as th
from singer_sdk.authenticators import BearerTokenAuthenticator
from singer_sdk.pagination import BaseAPIPaginator


class NewestFirst(BaseAPIPaginator):
    """Requests the next page from the time of the last row."""

    def __init__(self, cursor: str, newest_stored: str | None) -> None:
        super().__init__(None)
        self._cursor, self._newest_stored = cursor, newest_stored

    def get_next(self, response: Any) -> str | None:
        page = response.json()
        if not page["has_more"] or not page["data"]:
            return None
        at = page["data"][-1][self._cursor]
        return None if self._newest_stored and at < self._newest_stored else at


class Stream(RESTStream):
    primary_keys = ("id",)
    url_base = os.environ["BENCH_URL"]
    records_jsonpath = "$.data[*]"
    is_sorted = False

    @property
    def authenticator(self) -> BearerTokenAuthenticator:
        return BearerTokenAuthenticator(token=os.environ["BENCH_KEY"])

    def get_new_paginator(self) -> NewestFirst:
        return NewestFirst(self.replication_key, self.get_starting_replication_key_value(None))

    def get_url_params(self, _context: Any, next_page_token: str | None) -> dict[str, Any]:
        return {"limit": 100} | ({"before": next_page_token} if next_page_token else {})


TEXT, TIME, JSON = th.StringType, th.DateTimeType, th.ObjectType(additional_properties=True)


def properties(**types: Any) -> dict:
    return th.PropertiesList(*(th.Property(name, kind) for name, kind in types.items())).to_dict()


class Chats(Stream):
    name, path, replication_key = "chats", "/chats", "last_message_at"
    schema = properties(
        id=TEXT, from_handle=TEXT, remote_handle=TEXT, is_group=th.BooleanType, title=TEXT, last_message_at=TIME,
        created_at=TIME, updated_at=TIME,
    )  # fmt: skip


class Messages(Stream):
    name, path, replication_key = "messages", "/messages", "created_at"
    schema = properties(
        id=TEXT, conversation_id=TEXT, direction=TEXT, status=TEXT, channel=TEXT, text=TEXT, effect=TEXT,
        reply_to=TEXT, error=JSON, metadata=JSON,
        attachments=th.ArrayType(JSON), sender=TEXT, sent_at=TIME, delivered_at=TIME,
        read_at=TIME, created_at=TIME, updated_at=TIME,
    )  # fmt: skip


class TapMsgBubbles(Tap):
    name = "tap-msgbubbles"
    config_jsonschema = th.PropertiesList().to_dict()

    def discover_streams(self) -> Iterable[Stream]:
        return [Chats(self), Messages(self)]


if __name__ == "__main__":
    TapMsgBubbles.cli()
