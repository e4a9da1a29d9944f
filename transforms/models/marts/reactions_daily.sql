-- A view over the events, which are few.
{{ config(materialized=view_for_readers()) }}

select
    events.chat_id,
    cast({{ local_time('events.occurred_at') }} as date) as day,
    events.reaction,
    count(*) as reactions,
    count(distinct events.message_id) as messages_with_reaction
from {{ ref('stg_webhook_events') }} as events
inner join {{ ref('stg_chats') }} as chats on chats.chat_id = events.chat_id
where events.event_type = 'message.reaction'
group by events.chat_id, cast({{ local_time('events.occurred_at') }} as date), events.reaction
