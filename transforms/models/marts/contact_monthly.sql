-- A view over tables that are built per chat and day, so it needs no increments of its own.
{{ config(materialized=view_for_readers(), tags='tested_once_a_day') }}

with direct as (
    select
        chats.chat_id,
        chats.remote_handle,
        aliases.contact,
        coalesce(aliases.contact_key, {{ folded_handle('chats.remote_handle') }}) as handle
    from {{ ref('stg_chats') }} as chats
    left join {{ ref('stg_contact_aliases') }} as aliases
        on aliases.handle = {{ folded_handle('chats.remote_handle') }}
    where chats.remote_handle is not null and not chats.is_group
),

chats as (
    select
        chat_id,
        contact,
        handle,
        max(remote_handle) over (partition by handle) as spelling
    from direct
),

months as (
    select
        chats.handle,
        max(chats.spelling) as spelling,
        max(chats.contact) as contact,
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
    contact,
    month,
    first_month,
    {{ months_between('first_month', 'month') }} as months_since_first,
    active_days,
    messages_inbound,
    messages_outbound
from with_first
