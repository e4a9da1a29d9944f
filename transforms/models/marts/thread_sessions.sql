-- An increment writes the sessions of a chat again from the last one before the first changed day on (see cut_numbered).
{{ config(incremental_strategy='append', pre_hook="{{ cut_numbered('session_number', 'session_began_at') }}") }}
-- depends_on: {{ ref('int_thread_days') }}

with messages as (
    {{ messages_to_number('session_number') }}
),

-- Within its session, each message has a neighbor on either side, but the first and the last.
in_session as (
    select
        *,
        first_value(side) over session as initiator,
        lag(side) over session as side_before,
        lead(side) over session as side_after
    from messages
    window session as (partition by chat_id, session_number order by place_in_thread)
),

sessions as (
    select
        chat_id,
        session_number,
        from_handle,
        is_group,
        {{ schedule_number('from_handle') }} as schedule_number,
        min(initiator) as initiator,
        max(case when side_before is null then channel end) as channel,
        min(message_at) as started_at,
        max(message_at) as ended_at,
        min(day) as day,
        max(case when side_after is null then side end) as ended_by,
        count(case when side = 'us' then 1 end) as messages_from_us,
        count(case when side = 'them' then 1 end) as messages_from_them,
        count(case when side = 'us' and side is distinct from side_before then 1 end) as our_turns,
        count(case when side = 'them' and side is distinct from side_before then 1 end) as their_turns,
        min(case when side <> initiator then message_at end) as first_response_at
    from in_session
    group by chat_id, session_number, from_handle, is_group
),

followed as (
    select
        *,
        lead(started_at) over (partition by chat_id order by session_number) as reopened_at,
        lead(initiator) over (partition by chat_id order by session_number) as reopened_by
    from sessions
)

select
    followed.chat_id,
    followed.session_number,
    followed.from_handle,
    followed.is_group,
    followed.channel,
    followed.started_at,
    followed.ended_at,
    followed.day,
    {{ seconds_between('followed.started_at', 'followed.ended_at') }} as duration_seconds,
    followed.initiator,
    followed.ended_by,
    followed.messages_from_us,
    followed.messages_from_them,
    followed.our_turns,
    followed.their_turns,
    followed.initiator = 'them' and followed.our_turns = 1 as is_one_touch,
    followed.first_response_at,
    {{ seconds_between('followed.started_at', 'followed.first_response_at') }} as first_response_seconds,
    {{ business_seconds('asked', 'followed.started_at', 'replied', 'followed.first_response_at') }}
        as business_first_response_seconds,
    followed.reopened_at,
    followed.reopened_by,
    {{ seconds_between('followed.ended_at', 'followed.reopened_at') }} as reopened_after_seconds
from followed
{{ join_period('asked', 'followed.schedule_number', 'followed.started_at') }}
{{ join_period('replied', 'followed.schedule_number', 'followed.first_response_at') }}
