-- Grain: one row a chat. Owner: data team.
-- depends_on: {{ ref('chats_to_build') }}, {{ ref('thread_sizes') }}
with chats as (
    select * from {{ ref('stg_chats') }}
    {% if is_incremental() -%}
    where
        chat_id in (select chat_id from {{ ref('chats_to_build') }} where mart = 'thread_activity')
        -- A message that left a chat shows in no new row of that chat, only in its count.
        or chat_id in (
            select built.chat_id
            from {{ this }} as built
            left join {{ ref('thread_sizes') }} as landed on landed.chat_id = built.chat_id
            where built.messages_total <> coalesce(landed.messages_total, 0)
        )
    {%- endif %}
),

threads as (
    select
        chat_id,
        min(message_at) as first_message_at,
        max(message_at) as latest_message_at,
        count(*) as messages_total,
        count(case when direction = 'inbound' then 1 end) as messages_inbound,
        count(case when direction = 'outbound' then 1 end) as messages_outbound,
        count(case when direction = 'outbound' and status = 'failed' then 1 end) as messages_failed,
        max(case when direction = 'inbound' then message_at end) as last_inbound_at,
        max(case when direction = 'outbound' then message_at end) as last_outbound_at,
        -- A failed message reached nobody, so it is no answer. One without a status is taken as sent.
        max(
            case when direction = 'outbound' and coalesce(status, '') <> 'failed' then message_at end
        ) as last_answer_at,
        cast(coalesce(sum(attachment_count), 0) as bigint) as attachments_total,
        max(fetched_at) as fetched_at
    from {{ ref('stg_messages') }}
    where counts_in_thread and chat_id in (select chat_id from chats)
    group by chat_id
)

select
    chats.chat_id,
    chats.from_handle,
    chats.remote_handle,
    chats.is_group,
    chats.title,
    chats.created_at as chat_created_at,
    chats.deleted_at,
    chats.last_message_at,
    threads.first_message_at,
    threads.latest_message_at,
    coalesce(threads.messages_total, 0) as messages_total,
    coalesce(threads.messages_inbound, 0) as messages_inbound,
    coalesce(threads.messages_outbound, 0) as messages_outbound,
    coalesce(threads.messages_failed, 0) as messages_failed,
    threads.last_inbound_at,
    threads.last_outbound_at,
    case
        -- Nobody can write in a deleted chat.
        when chats.deleted_at is not null then 'nobody'
        -- The API says that there are messages, and none of them has been read.
        when threads.chat_id is null and chats.last_message_at is not null then null
        when threads.last_inbound_at is null and threads.last_answer_at is null then 'nobody'
        when threads.last_inbound_at is null then 'them'
        -- At one instant the inbound message counts as the later: rather a thread too many to look at than one missed.
        when threads.last_answer_at is null or threads.last_inbound_at >= threads.last_answer_at then 'us'
        else 'them'
    end as waiting_on,
    coalesce(threads.attachments_total, 0) as attachments_total,
    greatest(chats.fetched_at, threads.fetched_at) as fetched_at
from chats
left join threads on threads.chat_id = chats.chat_id
