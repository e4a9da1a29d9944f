-- An increment writes the turns of a chat again from the last one before the first changed day on (see cut_numbered).
{{ config(
    incremental_strategy='append',
    pre_hook="{{ cut_numbered('turn_number', 'turn_began_at') }}",
    post_hook="{{ update_open_turns() }}"
) }}
-- depends_on: {{ ref('int_thread_days') }}
{#- Declared, but not read without close_after_days: otherwise each run would build the turns. #}
{%- do ref('stg_stream_coverage') %}

with messages as (
    {{ messages_to_number('turn_number') }}
),

turns as (
    select
        chat_id,
        turn_number,
        from_handle,
        is_group,
        {{ schedule_number('from_handle') }} as schedule_number,
        min(session_number) as session_number,
        count(case when starts_turn and starts_session then 1 end) = 1 as starts_session,
        min(side) as side,
        max(case when starts_turn then channel end) as channel,
        min(message_at) as began_at,
        max(message_at) as ended_at,
        min(day) as day,
        count(*) as message_count
    from messages
    group by chat_id, turn_number, from_handle, is_group
),

answered as (
    select
        *,
        lead(began_at) over (partition by chat_id order by turn_number) as answered_at,
        lead(day) over (partition by chat_id order by turn_number) as answered_day
    from turns
),

targets (sla_target, target_seconds, is_business) as (
    values
    {%- for target in var('sla_targets') %}
        ({{ loop.index }}, {{ target.seconds }}, {{ (target.clock == 'business') | lower }}),
    {%- endfor %}
        (0, 0, false)
),

-- Where business hours last for a given number of seconds, by the day's worth of business seconds that it falls into.
deadlines as (
    select
        periods.schedule_number,
        periods.starts_at,
        periods.open_seconds_before,
        periods.open_seconds_before + periods.open_seconds as open_seconds_after,
        {{ open_day('periods.open_seconds_before') }} + offsets.days as open_day
    from (
        select distinct schedule_number, starts_at, open_seconds, open_seconds_before
        from {{ ref('int_business_hours') }}
        where is_open
    ) as periods
    inner join (values (0), (1), (2)) as offsets (days)
        on {{ open_day('periods.open_seconds_before') }} + offsets.days
        <= {{ open_day('periods.open_seconds_before + periods.open_seconds') }}
),

timed as (
    select
        answered.*,
        {{ business_seconds('asked', 'answered.began_at', 'replied', 'answered.answered_at') }}
            as business_reply_seconds,
        {{ business_clock('asked', 'answered.began_at') }} as began_business_seconds,
        case
            when answered.side = 'them' and not answered.is_group
                then {{ sla_target('answered.starts_session', 'answered.from_handle', 'answered.channel') }}
        end as sla_target
    from answered
    {{ join_period('asked', 'answered.schedule_number', 'answered.began_at') }}
    {{ join_period('replied', 'answered.schedule_number', 'answered.answered_at') }}
),

targeted as (
    select
        timed.*,
        targets.target_seconds,
        targets.is_business,
        case when targets.is_business then timed.began_business_seconds + targets.target_seconds end
            as due_business_seconds
    from timed
    left join targets on targets.sla_target = timed.sla_target
)

select
    targeted.chat_id,
    targeted.turn_number,
    targeted.session_number,
    targeted.starts_session,
    targeted.side,
    targeted.from_handle,
    targeted.is_group,
    targeted.channel,
    targeted.began_at,
    targeted.ended_at,
    targeted.day,
    targeted.message_count,
    targeted.answered_at,
    targeted.answered_day,
    {{ seconds_between('targeted.began_at', 'targeted.answered_at') }} as reply_seconds,
    targeted.business_reply_seconds,
    {{ is_open('targeted') }} as is_open,
    targeted.sla_target,
    case
        when targeted.is_business
            then {{ add_seconds('deadlines.starts_at', 'targeted.due_business_seconds - deadlines.open_seconds_before') }}
        else {{ add_seconds('targeted.began_at', 'targeted.target_seconds') }}
    end as due_at
from targeted
inner join {{ ref('stg_chats') }} as chats on chats.chat_id = targeted.chat_id
{%- if var('close_after_days') %}
cross join ({{ messages_coverage() }}) as coverage
{%- endif %}
left join deadlines
    on deadlines.schedule_number = targeted.schedule_number
    and deadlines.open_day = {{ open_day('targeted.due_business_seconds') }}
    and deadlines.open_seconds_before <= targeted.due_business_seconds
    and deadlines.open_seconds_after > targeted.due_business_seconds
