{%- set columns = {
    'chat_id': 'varchar', 'handle': 'varchar', '_fetched_at': 'timestamptz', '_dlt_load_id': 'varchar',
} %}
select
    chat_id,
    handle,
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ loaded_table('participant_lists', columns) }}
