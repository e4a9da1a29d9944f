{{ config(materialized='incremental', unique_key='id', incremental_strategy='delete+insert') }}

select
    id, conversation_id as chat_id, direction, status, channel, created_at, delivered_at, read_at,
    {{ env_var('PEER_LOADED') }} as loaded
from {{ source('account', 'messages') }}
{% if is_incremental() %}
where {{ env_var('PEER_LOADED') }} > (select max(loaded) from {{ this }})
{% endif %}
