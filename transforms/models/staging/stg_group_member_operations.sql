{%- set columns = {
    'id': 'varchar', 'operation_id': 'varchar', 'chat_id': 'varchar', 'handle': 'varchar', 'operation': 'varchar',
    'happened_at': 'timestamptz', '_fetched_at': 'timestamptz', '_dlt_load_id': 'varchar',
} %}
select
    id as member_operation_id,
    operation_id,
    chat_id,
    handle,
    operation,
    happened_at,
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ loaded_table('group_member_operations', columns) }}
