{%- set messages = ref('int_thread_messages') ~ (
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
            partition by chat_id order by count(*) desc, max(message_at) desc, {{ by_bytes('channel') }}
        ) as rank
    from {{ messages }} and channel is not null
    group by chat_id, channel
),

-- Folding a handle costs more than anything else here, so each is folded once.
senders as (
    select chat_id, count(distinct {{ folded_handle('sender') }}) as distinct_senders
    from (select distinct chat_id, sender from {{ messages }}) as spellings
    group by chat_id
),

threads as (
    select
        chat_id,
        min(message_at) as first_message_at,
        max(message_at) as latest_message_at,
        count(*) as messages_total,
        count(case when direction = 'inbound' then 1 end) as messages_inbound,
        count(case when direction = 'outbound' then 1 end) as messages_outbound,
        count(case when is_failed then 1 end) as messages_failed,
        count(case when is_delivered then 1 end) as messages_delivered,
        count(case when is_read then 1 end) as messages_read,
        count(case when channel = 'imessage' then 1 end) as messages_imessage,
        count(case when channel = 'sms' then 1 end) as messages_sms,
        count(case when channel = 'whatsapp' then 1 end) as messages_whatsapp,
        cast(sum(attachment_count) as bigint) as attachments_total,
        count(distinct day) as active_days,
        max(gap_seconds) as longest_gap_seconds,
        max(case when direction = 'inbound' then message_at end) as last_inbound_at,
        max(case when direction = 'outbound' then message_at end) as last_outbound_at,
        max(case when side = 'us' then message_at end) as last_answer_at,
        -- The side that spoke first is the one whose first turn is not a reply.
        max(case when starts_turn and reply_number is null then side end) as first_side,
        max(case when starts_turn and side = 'them' then message_at end) as last_asked_at,
        count(case when side = 'us' then reply_number end) as our_replies,
        count(case when side = 'them' then reply_number end) as their_replies,
        max(case when side = 'us' and reply_number = 1 then reply_seconds end) as our_first_response_seconds,
        max(case when side = 'them' and reply_number = 1 then reply_seconds end) as their_first_response_seconds,
        {{ percentile(0.5, "case when side = 'us' then reply_seconds end") }} as our_median_reply_seconds,
        {{ percentile(0.9, "case when side = 'us' then reply_seconds end") }} as our_p90_reply_seconds,
        {{ percentile(0.5, "case when side = 'them' then reply_seconds end") }} as their_median_reply_seconds,
        {{ percentile(0.9, "case when side = 'them' then reply_seconds end") }} as their_p90_reply_seconds,
        max(fetched_at) as messages_fetched_at
    from {{ messages }}
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
    threads.active_days,
    threads.longest_gap_seconds,
    threads.last_inbound_at,
    threads.last_outbound_at,
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
    threads.our_median_reply_seconds,
    threads.our_p90_reply_seconds,
    threads.their_median_reply_seconds,
    threads.their_p90_reply_seconds,
    threads.messages_fetched_at
from chats
left join threads on threads.chat_id = chats.chat_id
left join senders on senders.chat_id = chats.chat_id
left join channels on channels.chat_id = chats.chat_id and channels.rank = 1
