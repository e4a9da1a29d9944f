-- A view over tables that are built per chat and day, so it needs no increments of its own.
{{ config(materialized=view_for_readers()) }}

with chats as (
    select
        chat_id,
        {{ folded_handle('remote_handle') }} as handle,
        max(remote_handle) over (partition by {{ folded_handle('remote_handle') }}) as spelling
    from {{ ref('stg_chats') }}
    where remote_handle is not null and not is_group
),

months as (
    select
        chats.handle,
        max(chats.spelling) as spelling,
        cast(date_trunc('month', daily.day) as date) as month,
        count(distinct daily.day) as active_days,
        cast(sum(daily.messages_inbound) as bigint) as messages_inbound,
        cast(sum(daily.messages_outbound) as bigint) as messages_outbound
    from {{ ref('thread_activity_daily') }} as daily
    inner join chats on chats.chat_id = daily.chat_id
    where chats.handle not in ({{ own_handles() }})
    group by chats.handle, cast(date_trunc('month', daily.day) as date)
),

with_first as (
    select
        *,
        min(month) over (partition by handle) as first_month
    from months
)

select
    spelling as handle,
    month,
    first_month,
    {{ months_between('first_month', 'month') }} as months_since_first,
    active_days,
    messages_inbound,
    messages_outbound
from with_first
