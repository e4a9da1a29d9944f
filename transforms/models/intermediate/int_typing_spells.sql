-- depends_on: {{ ref('chats_to_build') }}, {{ ref('unbuilt_loads') }}
-- A chat that no longer has spells yields a row without one, which replaces the old rows and is deleted by the hook.
{{ config(post_hook="{{ delete_where('spell_number is null') }}") }}

with chats as (
    select chat_id, from_handle
    from {{ ref('stg_chats') }}
    where
    {%- if is_incremental() %}
        chat_id in (select chat_id from {{ ref('chats_to_build') }} where mart = 'int_typing_spells')
        or chat_id in (select chat_id from {{ source('bookkeeping', 'days_to_build') }} where mart = 'int_typing_spells')
        or chat_id in (
            select chat_id
            from {{ ref('stg_webhook_events') }}
            where event_type = 'conversation.typing' and load_id in ({{ new_loads() }})
        )
    {%- else %}
        chat_id in (select chat_id from {{ ref('stg_webhook_events') }} where event_type = 'conversation.typing')
    {%- endif %}
),

typing as (
    select events.chat_id, events.event_id as id, events.occurred_at as happened_at
    from {{ ref('stg_webhook_events') }} as events
    inner join chats on chats.chat_id = events.chat_id
    where
        events.event_type = 'conversation.typing'
        and coalesce(events.is_typing, true)
        -- Typing of our own side is not counted.
        and coalesce(events.direction, 'inbound') <> 'outbound'
        and (events.handle is null or chats.from_handle is null or {{ folded_handle('events.handle') }} <> {{ folded_handle('chats.from_handle') }})
),

events_in_chat as (
    select chat_id, id, happened_at, 'typing' as kind from typing
    union all
    select chat_id, message_id, message_at, 'wrote'
    from {{ ref('int_thread_messages') }}
    where direction = 'inbound' and chat_id in (select chat_id from typing)
),

-- At equal times, typing comes before the message: 'typing' sorts before 'wrote'.
in_order as (
    select
        *,
        lag(happened_at) over (partition by chat_id order by happened_at, kind, {{ by_bytes('id') }}) as before_at,
        lag(kind) over (partition by chat_id order by happened_at, kind, {{ by_bytes('id') }}) as kind_before
    from events_in_chat
),

-- A message belongs to the preceding spell.
numbered as (
    select
        *,
        sum(case
            when kind = 'wrote' then 0
            when
                kind_before = 'typing'
                and {{ seconds_between('before_at', 'happened_at') }} < {{ var('typing_spell_seconds') }}
                then 0
            else 1
        end) over (
            partition by chat_id order by happened_at, kind, {{ by_bytes('id') }} rows unbounded preceding
        ) as spell_number
    from in_order
),

spells as (
    select
        chat_id,
        cast(spell_number as bigint) as spell_number,
        min(case when kind = 'typing' then happened_at end) as started_at,
        max(case when kind = 'typing' then happened_at end) as last_typing_at,
        count(case when kind = 'typing' then 1 end) as typing_events,
        min(case when kind = 'wrote' then happened_at end) as wrote_at
    from numbered
    where spell_number > 0
    group by chat_id, spell_number
)

select
    chats.chat_id,
    spells.spell_number,
    spells.started_at,
    spells.last_typing_at,
    cast({{ local_time('spells.started_at') }} as date) as day,
    spells.typing_events,
    case
        when {{ seconds_between('spells.last_typing_at', 'spells.wrote_at') }} < {{ var('typing_spell_seconds') }}
            then spells.wrote_at
    end as sent_at
from chats
left join spells on spells.chat_id = chats.chat_id
{%- if target.type == 'spark' %}
where spells.spell_number is not null
{%- endif %}
