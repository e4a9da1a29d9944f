-- Each mart that counts messages counts every message of a known chat exactly once.
with loaded as (
    select count(*) as messages_total
    from {{ ref('stg_messages') }}
    where counts_in_thread and chat_id in (select chat_id from {{ ref('stg_chats') }})
),

counted as (
    select 'thread_activity' as mart, coalesce(sum(messages_total), 0) as messages_total
    from {{ ref('thread_activity') }}
    union all
    select 'thread_activity_daily', coalesce(sum(messages_total), 0) from {{ ref('thread_activity_daily') }}
    union all
    select 'thread_activity_hours', coalesce(sum(messages_total), 0) from {{ ref('thread_activity_hours') }}
    union all
    select 'number_activity_daily', coalesce(sum(messages_total), 0) + (
        select count(*) from {{ ref('int_thread_messages') }} where from_handle is null
    )
    from {{ ref('number_activity_daily') }}
)

select counted.mart, counted.messages_total, loaded.messages_total as loaded_total
from counted
cross join loaded
where counted.messages_total <> loaded.messages_total
