{{ config(materialized='incremental', unique_key='id', incremental_strategy='delete+insert') }}

select id, conversation_id as chat_id, direction, status, channel, created_at, delivered_at, read_at, _dlt_load_id
from {{ source('account', 'messages') }}
{% if is_incremental() %}
where _dlt_load_id > (select coalesce(max(_dlt_load_id), '') from {{ this }})
{% endif %}
