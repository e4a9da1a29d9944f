-- Grain: one row a request that was made to change a group.
{%- set columns = {
    'operation_id': 'text', 'plan_id': 'text', 'key': 'text', 'operation': 'text', 'chat_id': 'text',
    'handles': 'json', 'title': 'text', 'requested_at': 'timestamptz', 'finished_at': 'timestamptz',
    'outcome': 'text', 'http_status': 'bigint', 'error_code': 'text', 'error_message': 'text',
    'request_id': 'text', '_read_at': 'timestamptz', '_dlt_load_id': 'text',
} %}
select
    operation_id,
    plan_id,
    key,
    operation,
    chat_id,
    handles,
    title,
    requested_at,
    finished_at,
    outcome,
    http_status,
    error_code,
    error_message,
    request_id,
    _read_at as fetched_at,
    _dlt_load_id as load_id
from {{ landed('group_operations', columns) }}
