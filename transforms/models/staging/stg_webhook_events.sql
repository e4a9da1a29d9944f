{%- set columns = {
    'event_id': 'varchar', 'event_type': 'varchar', 'chat_id': 'varchar', 'message_id': 'varchar', 'handle': 'varchar',
    'is_typing': 'boolean', 'direction': 'varchar', 'status': 'varchar', 'reaction': 'varchar',
    'message_at': 'timestamptz', 'occurred_at': 'timestamptz', 'received_at': 'timestamptz', 'payload': 'json',
    '_dlt_load_id': 'varchar',
} %}
select
    event_id,
    event_type,
    chat_id,
    message_id,
    handle,
    is_typing,
    direction,
    status,
    reaction,
    message_at,
    occurred_at,
    received_at,
    payload,
    _dlt_load_id as load_id
from {{ loaded_table('webhook_events', columns) }}
