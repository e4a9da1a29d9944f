-- A day of the week that no longer has messages yields a row without counts, which replaces the old rows and is deleted by
-- the hook.
{{ config(
    unique_key=['chat_id', 'weekday'],
    post_hook="{{ delete_where('messages_total is null') }}"
) }}

with weekdays as (
    {% if is_incremental() -%}
    select distinct chat_id, {{ weekday('day') }} as weekday
    from {{ source('bookkeeping', 'days_to_build') }}
    where mart = 'thread_activity_hours'
    {%- else -%}
    select distinct chat_id, weekday from {{ ref('int_thread_messages') }}
    {%- endif %}
),

hours as (
    select
        messages.chat_id,
        messages.weekday,
        messages.hour,
        count(*) as messages_total,
        count(case when messages.direction = 'inbound' then 1 end) as messages_inbound,
        count(case when messages.direction = 'outbound' then 1 end) as messages_outbound
    from {{ ref('int_thread_messages') }} as messages
    inner join weekdays on weekdays.chat_id = messages.chat_id and weekdays.weekday = messages.weekday
    group by messages.chat_id, messages.weekday, messages.hour
)

select
    weekdays.chat_id,
    weekdays.weekday,
    hours.hour,
    hours.messages_total,
    hours.messages_inbound,
    hours.messages_outbound
from weekdays
left join hours on hours.chat_id = weekdays.chat_id and hours.weekday = weekdays.weekday
