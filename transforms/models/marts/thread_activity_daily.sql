-- A day that no longer has messages yields a row without counts, which replaces the old one and is deleted by the hook.
{{ config(
    unique_key=['chat_id', 'day'],
    post_hook="{{ delete_where('messages_total is null') }}"
) }}

with days as (
    {% if is_incremental() -%}
    select distinct chat_id, day from {{ source('bookkeeping', 'days_to_build') }} where mart = 'thread_activity_daily'
    {%- else -%}
    select distinct chat_id, day from {{ ref('int_thread_messages') }}
    {%- endif %}
),

daily as (
    select
        messages.chat_id,
        messages.day,
        count(*) as messages_total,
        count(case when messages.direction = 'inbound' then 1 end) as messages_inbound,
        count(case when messages.direction = 'outbound' then 1 end) as messages_outbound,
        count(case when messages.is_failed then 1 end) as messages_failed,
        count(case when messages.side = 'us' then messages.reply_number end) as our_replies,
        count(case when messages.side = 'them' then messages.reply_number end) as their_replies,
        count(distinct {{ folded_handle('messages.sender') }}) as distinct_senders,
        min(messages.message_at) as first_message_at,
        max(messages.message_at) as latest_message_at
    from {{ ref('int_thread_messages') }} as messages
    inner join days on days.chat_id = messages.chat_id and days.day = messages.day
    group by messages.chat_id, messages.day
)

select
    days.chat_id,
    days.day,
    daily.messages_total,
    daily.messages_inbound,
    daily.messages_outbound,
    daily.messages_failed,
    daily.our_replies,
    daily.their_replies,
    daily.distinct_senders,
    daily.first_message_at,
    daily.latest_message_at
from days
left join daily on daily.chat_id = days.chat_id and daily.day = days.day
