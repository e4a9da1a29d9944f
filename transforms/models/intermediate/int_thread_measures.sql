{%- set days = ref('int_thread_days') ~ (
    ' where chat_id in (select chat_id from chats)' if is_incremental() else ' where true') -%}
with chats as (
    select chat_id from {{ ref('stg_chats') }}
    {%- if is_incremental() %}
    where
        chat_id in (select chat_id from {{ source('bookkeeping', 'days_to_build') }} where mart = 'int_thread_measures')
        or chat_id not in (select chat_id from {{ this }})
    {%- endif %}
),

-- In a tie, the channel of the latest message, then the first in alphabetical order.
channels as (
    select
        chat_id,
        channel,
        row_number() over (
            partition by chat_id
            order by sum(messages_total) desc, max(latest_message_at) desc, {{ by_bytes('channel') }}
        ) as rank
    from {{ days }} and channel is not null
    group by chat_id, channel
),

-- Folding a handle costs more than anything else here, so each is folded once.
senders as (
    select chat_id, count(distinct {{ folded_handle('sender') }}) as distinct_senders
    from (select distinct chat_id, sender from {{ days }}) as spellings
    group by chat_id
),

-- A turn has the seconds after which the other side replied.
replies as (
    select
        chat_id,
        {{ percentile(0.5, "case when side = 'them' then reply_seconds end") }} as our_median_reply_seconds,
        {{ percentile(0.9, "case when side = 'them' then reply_seconds end") }} as our_p90_reply_seconds,
        {{ percentile(0.5, "case when side = 'us' then reply_seconds end") }} as their_median_reply_seconds,
        {{ percentile(0.9, "case when side = 'us' then reply_seconds end") }} as their_p90_reply_seconds
    from {{ ref('thread_turns') }}
    {%- if is_incremental() %}
    where chat_id in (select chat_id from chats)
    {%- endif %}
    group by chat_id
),

threads as (
    select
        chat_id,
        min(first_message_at) as first_message_at,
        max(latest_message_at) as latest_message_at,
        cast(sum(messages_total) as bigint) as messages_total,
        cast(sum(case when direction = 'inbound' then messages_total else 0 end) as bigint) as messages_inbound,
        cast(sum(case when direction = 'outbound' then messages_total else 0 end) as bigint) as messages_outbound,
        cast(sum(messages_failed) as bigint) as messages_failed,
        cast(sum(messages_delivered) as bigint) as messages_delivered,
        cast(sum(messages_read) as bigint) as messages_read,
        cast(sum(case when channel = 'imessage' then messages_total else 0 end) as bigint) as messages_imessage,
        cast(sum(case when channel = 'sms' then messages_total else 0 end) as bigint) as messages_sms,
        cast(sum(case when channel = 'whatsapp' then messages_total else 0 end) as bigint) as messages_whatsapp,
        cast(sum(attachments_total) as bigint) as attachments_total,
        min(day) as first_day,
        count(distinct day) as active_days,
        max(longest_gap_seconds) as longest_gap_seconds,
        max(case when direction = 'inbound' then latest_message_at end) as last_inbound_at,
        max(case when direction = 'outbound' then latest_message_at end) as last_outbound_at,
        max(spoke_at) as spoke_at,
        max(case when direction = 'outbound' then spoke_at end) as last_answer_at,
        max(first_side) as first_side,
        max(case when direction = 'inbound' then turn_began_at end) as last_asked_at,
        cast(sum(case when direction = 'outbound' then replies else 0 end) as bigint) as our_replies,
        cast(sum(case when direction = 'inbound' then replies else 0 end) as bigint) as their_replies,
        max(case when direction = 'outbound' then first_response_seconds end) as our_first_response_seconds,
        max(case when direction = 'inbound' then first_response_seconds end) as their_first_response_seconds,
        max(fetched_at) as messages_fetched_at
    from {{ days }}
    group by chat_id
)

select
    chats.chat_id,
    threads.first_message_at,
    threads.latest_message_at,
    threads.messages_total,
    threads.messages_inbound,
    threads.messages_outbound,
    threads.messages_failed,
    threads.messages_delivered,
    threads.messages_read,
    threads.messages_imessage,
    threads.messages_sms,
    threads.messages_whatsapp,
    channels.channel as main_channel,
    threads.attachments_total,
    senders.distinct_senders,
    threads.first_day,
    threads.active_days,
    threads.longest_gap_seconds,
    threads.last_inbound_at,
    threads.last_outbound_at,
    threads.spoke_at,
    threads.first_side,
    case
        when threads.chat_id is null then null
        when threads.last_inbound_at is null and threads.last_answer_at is null then 'nobody'
        when threads.last_inbound_at is null or threads.last_inbound_at < threads.last_answer_at then 'them'
        else 'us'
    end as waiting_on,
    case
        when threads.last_answer_at is null or threads.last_inbound_at >= threads.last_answer_at
            then threads.last_asked_at
    end as unanswered_since,
    threads.our_replies,
    threads.their_replies,
    threads.our_first_response_seconds,
    threads.their_first_response_seconds,
    replies.our_median_reply_seconds,
    replies.our_p90_reply_seconds,
    replies.their_median_reply_seconds,
    replies.their_p90_reply_seconds,
    threads.messages_fetched_at
from chats
left join threads on threads.chat_id = chats.chat_id
left join replies on replies.chat_id = chats.chat_id
left join senders on senders.chat_id = chats.chat_id
left join channels on channels.chat_id = chats.chat_id and channels.rank = 1
