-- A day that no longer has messages yields a row without counts, which replaces the old one and is deleted by the hook.
{{ config(
    unique_key=['from_handle', 'day'],
    post_hook="{{ delete_where('messages_total is null') }}"
) }}

with days as (
    {% if is_incremental() -%}
    select distinct from_handle, day
    from {{ source('bookkeeping', 'days_to_build') }}
    where mart = 'number_activity_daily' and from_handle is not null
    {%- else -%}
    select distinct from_handle, day from {{ ref('int_thread_messages') }} where from_handle is not null
    {%- endif %}
),

daily as (
    select
        messages.from_handle,
        messages.day,
        count(distinct messages.chat_id) as threads_active,
        count(*) as messages_total,
        count(case when messages.direction = 'inbound' then 1 end) as messages_inbound,
        count(case when messages.direction = 'outbound' then 1 end) as messages_outbound,
        count(case when messages.is_failed then 1 end) as messages_failed,
        count(case when messages.side = 'us' then messages.reply_number end) as our_replies,
        count(case when messages.side = 'them' then messages.reply_number end) as their_replies,
        {{ percentile(0.5, "case when messages.side = 'us' then messages.reply_seconds end") }}
            as our_median_reply_seconds,
        {{ percentile(0.9, "case when messages.side = 'us' then messages.reply_seconds end") }}
            as our_p90_reply_seconds,
        {{ percentile(0.5, "case when messages.side = 'them' then messages.reply_seconds end") }}
            as their_median_reply_seconds
    from {{ ref('int_thread_messages') }} as messages
    inner join days on days.from_handle = messages.from_handle and days.day = messages.day
    group by messages.from_handle, messages.day
)

select
    days.from_handle,
    days.day,
    daily.threads_active,
    daily.messages_total,
    daily.messages_inbound,
    daily.messages_outbound,
    daily.messages_failed,
    daily.our_replies,
    daily.their_replies,
    daily.our_median_reply_seconds,
    daily.our_p90_reply_seconds,
    daily.their_median_reply_seconds
from days
left join daily on daily.from_handle = days.from_handle and daily.day = days.day
