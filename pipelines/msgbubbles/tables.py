"""The tables that the API's rows are loaded into, and their columns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec import Raw

from .models import Message, Row

ColumnType = Literal["text", "bigint", "bool", "timestamp", "json"]


@dataclass(frozen=True)
class Column:
    """A landed column. `attribute` is where its value is found on the row."""

    name: str
    type: ColumnType
    nullable: bool = True


def columns_of(model: type[Row]) -> tuple[Column, ...]:
    """The columns that rows of `model` land in, in order. `_fetched_at` is when the row was asked for."""
    columns = [
        Column(field.name, _column_type(field.type), nullable=field.name != model.key_field)
        for field in msgspec.structs.fields(model)
        if field.name not in model.not_loaded and field.name != "extra"
    ]
    if model is Message:
        columns += [Column("attachment_count", "bigint"), Column("cursor_at", "timestamp")]
    return (*columns, Column("extra", "json"), Column("_fetched_at", "timestamp", nullable=False))


def _column_type(annotation: object) -> ColumnType:
    annotation = _unannotated(annotation)
    types = {_unannotated(one) for one in get_args(annotation) or (annotation,)} - {type(None)}
    names: dict[object, ColumnType] = {
        str: "text",
        int: "bigint",
        bool: "bool",
        datetime: "timestamp",
        Raw: "json",
    }
    return names[types.pop()]


def _unannotated(annotation: object) -> object:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


# A title of a chat, as it was when it was seen to be another than before; a null title took an earlier one away.
TITLE_COLUMNS = (
    Column("chat_id", "text", nullable=False),
    Column("title", "text"),
    Column("updated_at", "timestamp"),
    Column("_fetched_at", "timestamp", nullable=False),
)

# When a group's participants were asked for last, and who they were: a JSON list, in order.
PARTICIPANT_READ_COLUMNS = (
    Column("chat_id", "text", nullable=False),
    Column("handles", "json"),
    Column("asked_at", "timestamp"),
    Column("_fetched_at", "timestamp", nullable=False),
)

# Since when and up to when a stream is complete: every row that was visible with an instant in between has landed.
COVERAGE_COLUMNS = (
    Column("stream", "text", nullable=False),
    Column("complete_since", "timestamp"),
    Column("complete_to", "timestamp"),
    Column("_fetched_at", "timestamp", nullable=False),
)

# A participant of a group, as of a list that was another than the one before. A list of nobody is a null handle.
PARTICIPANT_LIST_COLUMNS = (
    Column("id", "text", nullable=False),
    Column("chat_id", "text"),
    Column("handle", "text"),
    Column("_fetched_at", "timestamp", nullable=False),
)

REJECTED_COLUMNS = (
    Column("row_hash", "text", nullable=False),
    Column("stream", "text"),
    Column("reason", "text"),
    Column("row", "text"),
    Column("request_id", "text"),
    Column("_fetched_at", "timestamp", nullable=False),
)
