-- A chat that no longer has messages yields a row without counts, which replaces the old rows and is deleted by the hook.
{{ config(post_hook="{{ delete_where('messages_total is null') }}") }}

with chats as (
    {% if is_incremental() -%}
    select distinct chat_id from {{ source('bookkeeping', 'days_to_build') }} where mart = 'thread_activity_hours'
    {%- else -%}
    select distinct chat_id from {{ ref('int_thread_messages') }}
    {%- endif %}
),

hours as (
    select
        chat_id,
        weekday,
        hour,
        count(*) as messages_total,
        count(case when direction = 'inbound' then 1 end) as messages_inbound,
        count(case when direction = 'outbound' then 1 end) as messages_outbound
    from {{ ref('int_thread_messages') }}
    {%- if is_incremental() %}
    where chat_id in (select chat_id from chats)
    {%- endif %}
    group by chat_id, weekday, hour
)

select
    chats.chat_id,
    hours.weekday,
    hours.hour,
    hours.messages_total,
    hours.messages_inbound,
    hours.messages_outbound
from chats
left join hours on hours.chat_id = chats.chat_id
