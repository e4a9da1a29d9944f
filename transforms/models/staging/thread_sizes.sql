-- Grain: one row a chat that has messages. A table: all marts of a run ask it which chats they hold too much or too
-- little of, and it is the one place that looks at every message.
{{ config(materialized='table') }}

select chat_id, count(*) as messages_total
from {{ ref('stg_messages') }}
where counts_in_thread
group by chat_id
