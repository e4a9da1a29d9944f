-- A day that no longer has messages yields a row without counts, which replaces the old one and is deleted by the hook.
{{ config(
    unique_key=['chat_id', 'day'],
    post_hook="{{ delete_where('messages_total is null') }}"
) }}

with days as (
    {% if is_incremental() -%}
    select distinct chat_id, day from {{ source('bookkeeping', 'days_to_build') }} where mart = 'thread_activity_daily'
    {%- else -%}
    select distinct chat_id, day from {{ ref('int_thread_days') }}
    {%- endif %}
),

daily as (
    select
        parts.chat_id,
        parts.day,
        cast(sum(parts.messages_total) as bigint) as messages_total,
        cast(sum(case when parts.direction = 'inbound' then parts.messages_total else 0 end) as bigint) as messages_inbound,
        cast(sum(case when parts.direction = 'outbound' then parts.messages_total else 0 end) as bigint) as messages_outbound,
        cast(sum(parts.messages_failed) as bigint) as messages_failed,
        cast(sum(case when parts.direction = 'outbound' then parts.replies else 0 end) as bigint) as our_replies,
        cast(sum(case when parts.direction = 'inbound' then parts.replies else 0 end) as bigint) as their_replies,
        count(distinct {{ folded_handle('parts.sender') }}) as distinct_senders,
        min(parts.first_message_at) as first_message_at,
        max(parts.latest_message_at) as latest_message_at
    from {{ ref('int_thread_days') }} as parts
    inner join days on days.chat_id = parts.chat_id and days.day = parts.day
    group by parts.chat_id, parts.day
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
