-- Grain: one row a group, a read that saw another list of participants than before, and a handle of that list.
{%- set columns = {
    'chat_id': 'varchar', 'handle': 'varchar', '_fetched_at': 'timestamptz', '_dlt_load_id': 'varchar',
} %}
select
    chat_id,
    handle,
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ landed('participant_lists', columns) }}
