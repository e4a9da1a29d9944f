{%- set columns = {
    'handle': 'varchar', 'contact': 'varchar', '_fetched_at': 'timestamptz', '_dlt_load_id': 'varchar',
} %}
select
    handle,
    contact,
    -- What the handle's chats are grouped by; no handle looks like it.
    'contact ' || contact as contact_key,
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ loaded_table('contact_aliases', columns) }}
