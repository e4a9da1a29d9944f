-- A day that no longer has messages yields a row without counts, which replaces the old ones and is deleted by the hook.
{{ config(
    unique_key=['from_handle', 'day'],
    post_hook="{{ delete_where('messages_total is null') }}"
) }}

with days as (
    {% if is_incremental() -%}
    select distinct from_handle, day
    from {{ source('bookkeeping', 'days_to_build') }}
    where mart = 'delivery_daily' and from_handle is not null
    {%- else -%}
    select distinct from_handle, day
    from {{ ref('int_thread_messages') }}
    where from_handle is not null and direction = 'outbound'
    {%- endif %}
),

messages as (
    select
        days.from_handle,
        days.day,
        messages.channel,
        loaded.status,
        case when messages.is_failed then {{ error_code('loaded.error') }} end as error_code,
        coalesce(loaded.sent_at, messages.message_at) as sent_at,
        loaded.delivered_at,
        loaded.read_at
    from days
    inner join {{ ref('int_thread_messages') }} as messages
        on messages.from_handle = days.from_handle and messages.day = days.day
    -- Each message has a row here. With an inner join, DuckDB would look up all messages before it filters days. Messages
    -- are loaded by time, more or less, so their time skips most of them; ids have no order.
    left join {{ ref('stg_messages') }} as loaded
        on loaded.message_id = messages.message_id
        and loaded.message_at = messages.message_at
    where messages.direction = 'outbound'
),

daily as (
    select
        from_handle,
        day,
        channel,
        status,
        error_code,
        count(*) as messages_total,
        {{ percentile(0.5, "case when delivered_at >= sent_at then " ~ seconds_between('sent_at', 'delivered_at') ~ " end") }}
            as median_delivery_seconds,
        {{ percentile(0.5, "case when read_at >= sent_at then " ~ seconds_between('sent_at', 'read_at') ~ " end") }}
            as median_read_seconds
    from messages
    group by from_handle, day, channel, status, error_code
)

select
    days.from_handle,
    days.day,
    daily.channel,
    daily.status,
    daily.error_code,
    daily.messages_total,
    daily.median_delivery_seconds,
    daily.median_read_seconds
from days
left join daily on daily.from_handle = days.from_handle and daily.day = days.day
