{%- set columns = {
    'operation_id': 'varchar', 'plan_id': 'varchar', 'key': 'varchar', 'operation': 'varchar', 'chat_id': 'varchar',
    'handles': 'json', 'title': 'varchar', 'requested_at': 'timestamptz', 'finished_at': 'timestamptz',
    'outcome': 'varchar', 'http_status': 'bigint', 'error_code': 'varchar', 'error_message': 'varchar',
    'request_id': 'varchar', '_fetched_at': 'timestamptz', '_dlt_load_id': 'varchar',
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
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ loaded_table('group_operations', columns) }}
