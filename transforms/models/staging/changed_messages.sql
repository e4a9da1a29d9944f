-- A table, so that later models read these rows instead of scanning all messages again.
{{ config(materialized='table') }}

select message_id, chat_id, message_at, counts_in_thread
from {{ ref('stg_messages') }}
where load_id in (select load_id from {{ ref('unbuilt_loads') }} where mart = 'int_thread_messages')
