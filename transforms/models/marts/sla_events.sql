-- A view, because targets that are still running depend on the time of the latest complete run.
{{ config(materialized=view_for_readers()) }}

with coverage as (
    {{ messages_coverage() }}
),

targets (sla_target, metric, clock, target_seconds) as (
    values
    {%- for target in var('sla_targets') %}
        ({{ loop.index }}, '{{ target.metric }}', '{{ target.clock }}', {{ target.seconds }}),
    {%- endfor %}
        (0, '', '', 0)
),

events as (
    select
        turns.*,
        targets.metric,
        targets.clock,
        targets.target_seconds,
        chats.deleted_at,
        {{ schedule_number('turns.from_handle') }} as schedule_number,
        -- The wait ends with the answer or the chat. Otherwise it lasts until the latest complete run.
        coalesce(
            turns.answered_at, greatest(coalesce(chats.deleted_at, coverage.as_of), turns.began_at)
        ) as waited_until
    from {{ ref('thread_turns') }} as turns
    inner join targets on targets.sla_target = turns.sla_target
    inner join {{ ref('stg_chats') }} as chats on chats.chat_id = turns.chat_id
    cross join coverage
),

measured as (
    select
        events.*,
        case
            when events.clock = 'wall' then {{ seconds_between('events.began_at', 'events.waited_until') }}
            when events.answered_at is not null then events.business_reply_seconds
            else {{ business_seconds('asked', 'events.began_at', 'waited', 'events.waited_until') }}
        end as elapsed_seconds
    from events
    {{ join_period('asked', 'events.schedule_number', 'case when events.answered_at is null then events.began_at end') }}
    {{ join_period('waited', 'events.schedule_number', 'case when events.answered_at is null then events.waited_until end') }}
)

select
    chat_id,
    turn_number,
    from_handle,
    channel,
    day,
    metric,
    clock,
    target_seconds,
    began_at as asked_at,
    due_at,
    answered_at,
    elapsed_seconds,
    case when elapsed_seconds > target_seconds then due_at end as breached_at,
    case
        when elapsed_seconds > target_seconds then 'breached'
        when answered_at is not null then 'met'
        when deleted_at is not null then 'dropped'
        else 'running'
    end as state
from measured
