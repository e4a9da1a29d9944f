-- depends_on: {{ ref('chats_to_build') }}
-- A chat that no longer has turns yields a row without one, which replaces the old rows and is deleted by the hook.
{{ config(post_hook="{{ delete_where('turn_number is null') }}") }}

with chats as (
    select
        chat_id,
        from_handle,
        is_group,
        deleted_at,
        {{ schedule_number('from_handle') }} as schedule_number
    from {{ ref('stg_chats') }}
    where
    {%- if is_incremental() %}
        chat_id in (select chat_id from {{ ref('chats_to_build') }} where mart = 'thread_turns')
        or chat_id in (select chat_id from {{ source('bookkeeping', 'days_to_build') }} where mart = 'thread_turns')
    {%- else %}
        chat_id in (select chat_id from {{ ref('int_thread_messages') }} where side is not null)
    {%- endif %}
),

messages as (
    select
        chat_id,
        side,
        channel,
        message_at,
        day,
        starts_turn,
        place_in_thread,
        lag(message_at) over (partition by chat_id order by place_in_thread) as before_at
    from {{ ref('int_thread_messages') }}
    where
        side is not null
        {%- if is_incremental() %}
        and chat_id in (select chat_id from chats)
        {%- endif %}
),

numbered as (
    select
        *,
        {{ starts_session('before_at', 'message_at') }} as starts_session,
        sum({{ starts_session('before_at', 'message_at') }}) over thread as session_number,
        sum(case when starts_turn then 1 else 0 end) over thread as turn_number
    from messages
    window thread as (partition by chat_id order by place_in_thread rows unbounded preceding)
),

turns as (
    select
        chat_id,
        cast(turn_number as bigint) as turn_number,
        cast(min(session_number) as bigint) as session_number,
        max(case when starts_turn then starts_session end) = 1 as starts_session,
        min(side) as side,
        max(case when starts_turn then channel end) as channel,
        min(message_at) as began_at,
        max(message_at) as ended_at,
        min(day) as day,
        count(*) as message_count
    from numbered
    group by chat_id, turn_number
),

answered as (
    select
        *,
        lead(began_at) over (partition by chat_id order by turn_number) as answered_at
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
        chats.chat_id,
        chats.from_handle,
        chats.is_group,
        chats.deleted_at,
        chats.schedule_number,
        answered.turn_number,
        answered.session_number,
        answered.starts_session,
        answered.side,
        answered.channel,
        answered.began_at,
        answered.ended_at,
        answered.day,
        answered.message_count,
        answered.answered_at,
        {{ business_seconds('asked', 'answered.began_at', 'replied', 'answered.answered_at') }}
            as business_reply_seconds,
        {{ business_clock('asked', 'answered.began_at') }} as began_business_seconds,
        case
            when answered.side = 'them' and not chats.is_group
                then {{ sla_target('answered.starts_session', 'chats.from_handle', 'answered.channel') }}
        end as sla_target
    from chats
    left join answered on answered.chat_id = chats.chat_id
    {{ join_period('asked', 'chats.schedule_number', 'answered.began_at') }}
    {{ join_period('replied', 'chats.schedule_number', 'answered.answered_at') }}
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
    {{ seconds_between('targeted.began_at', 'targeted.answered_at') }} as reply_seconds,
    targeted.business_reply_seconds,
    targeted.answered_at is null and targeted.deleted_at is null as is_open,
    targeted.sla_target,
    case
        when targeted.is_business
            then {{ add_seconds('deadlines.starts_at', 'targeted.due_business_seconds - deadlines.open_seconds_before') }}
        else {{ add_seconds('targeted.began_at', 'targeted.target_seconds') }}
    end as due_at
from targeted
left join deadlines
    on deadlines.schedule_number = targeted.schedule_number
    and deadlines.open_day = {{ open_day('targeted.due_business_seconds') }}
    and deadlines.open_seconds_before <= targeted.due_business_seconds
    and deadlines.open_seconds_after > targeted.due_business_seconds
