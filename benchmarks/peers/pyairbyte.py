"""Use PyAirbyte with a declarative manifest of the API and its DuckDB cache.

Its executor of declarative manifests (0.71) ignores the state, so every run reads everything.
"""

from __future__ import annotations

import os

os.environ |= {"DO_NOT_TRACK": "1", "AIRBYTE_DISABLE_TELEMETRY": "1", "AIRBYTE_OFFLINE_MODE": "1"}

import airbyte as ab
from airbyte.caches import DuckDBCache

ISO = "%Y-%m-%dT%H:%M:%S.%_msZ"
TEXT = {"type": ["null", "string"]}
TIME = {"type": ["null", "string"], "format": "date-time"}
JSON = {"type": ["null", "object"], "additionalProperties": True}
COLUMNS = {
    "chats": {
        **dict.fromkeys(("id", "from_handle", "remote_handle", "title"), TEXT),
        "is_group": {"type": ["null", "boolean"]},
        **dict.fromkeys(("last_message_at", "created_at", "updated_at"), TIME),
    },
    "messages": {
        **dict.fromkeys(("id", "conversation_id", "direction", "status", "channel", "text", "effect"), TEXT),
        **dict.fromkeys(("reply_to", "sender"), TEXT),
        **dict.fromkeys(("error", "metadata"), JSON),
        "attachments": {"type": ["null", "array"], "items": JSON},
        **dict.fromkeys(("sent_at", "delivered_at", "read_at", "created_at", "updated_at"), TIME),
    },
}


def stream(name: str, cursor: str) -> dict:
    return {
        "type": "DeclarativeStream",
        "name": name,
        "primary_key": ["id"],
        "retriever": {
            "type": "SimpleRetriever",
            "requester": {
                "type": "HttpRequester",
                "url_base": os.environ["BENCH_URL"],
                "path": f"/{name}",
                "http_method": "GET",
                "authenticator": {"type": "BearerAuthenticator", "api_token": "{{ config['api_key'] }}"},
                "request_parameters": {"limit": "100"},
            },
            "record_selector": {
                "type": "RecordSelector",
                "extractor": {"type": "DpathExtractor", "field_path": ["data"]},
            },
            "paginator": {
                "type": "DefaultPaginator",
                "page_token_option": {
                    "type": "RequestOption",
                    "inject_into": "request_parameter",
                    "field_name": "before",
                },
                "pagination_strategy": {
                    "type": "CursorPagination",
                    "cursor_value": "{{ last_record['" + cursor + "'] }}",
                    "stop_condition": "{{ not response['has_more'] }}",
                },
            },
        },
        "incremental_sync": {
            "type": "DatetimeBasedCursor",
            "cursor_field": cursor,
            "cursor_datetime_formats": [ISO],
            "datetime_format": ISO,
            "start_datetime": {
                "type": "MinMaxDatetime",
                "datetime": "2000-01-01T00:00:00.000Z",
                "datetime_format": ISO,
            },
            # Newest first, so that reading stops at the previous run's newest row.
            "is_data_feed": True,
        },
        "schema_loader": {
            "type": "InlineSchemaLoader",
            "schema": {"type": "object", "additionalProperties": True, "properties": COLUMNS[name]},
        },
    }


def main() -> None:
    manifest = {
        "version": "7.0.0",
        "type": "DeclarativeSource",
        "check": {"type": "CheckStream", "stream_names": ["chats"]},
        "concurrency_level": {"type": "ConcurrencyLevel", "default_concurrency": 2},
        "streams": [stream("chats", "last_message_at"), stream("messages", "created_at")],
        "spec": {
            "type": "Spec",
            "connection_specification": {"type": "object", "properties": {"api_key": {"type": "string"}}},
        },
    }
    source = ab.get_source(
        "source-msgbubbles", config={"api_key": os.environ["BENCH_KEY"]}, source_manifest=manifest, streams="*"
    )
    source.read(DuckDBCache(db_path="airbyte.duckdb", schema_name="account"), write_strategy="merge")


if __name__ == "__main__":
    main()
