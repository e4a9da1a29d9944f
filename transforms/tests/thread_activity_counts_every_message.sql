-- Every message of a known chat is counted, once.
select marts.messages_total, landed.messages_total as landed_total
from (select coalesce(sum(messages_total), 0) as messages_total from {{ ref('thread_activity') }}) as marts
cross join (
    select count(*) as messages_total
    from {{ ref('stg_messages') }}
    where counts_in_thread and chat_id in (select chat_id from {{ ref('stg_chats') }})
) as landed
where marts.messages_total <> landed.messages_total
