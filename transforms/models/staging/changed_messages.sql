-- Grain: one row a message that came, or came again, with a load that int_thread_messages does not hold yet.
-- A table: all that follows in a run looks at these rows and not at every message again.
{{ config(materialized='table') }}

select message_id, chat_id
from {{ ref('stg_messages') }}
where load_id in (select load_id from {{ ref('unbuilt_loads') }} where mart = 'int_thread_messages')
