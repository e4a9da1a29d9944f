-- depends_on: {{ ref('chats_to_build') }}
-- A chat that no longer has sessions yields a row without one, which replaces the old rows and is deleted by the hook.
{{ config(post_hook="{{ delete_where('session_number is null') }}") }}

with chats as (
    select
        chat_id,
        from_handle,
        is_group,
        {{ schedule_number('from_handle') }} as schedule_number
    from {{ ref('stg_chats') }}
    where
    {%- if is_incremental() %}
        chat_id in (select chat_id from {{ ref('chats_to_build') }} where mart = 'thread_sessions')
        or chat_id in (select chat_id from {{ source('bookkeeping', 'days_to_build') }} where mart = 'thread_sessions')
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
        sum({{ starts_session('before_at', 'message_at') }}) over (
            partition by chat_id order by place_in_thread rows unbounded preceding
        ) as session_number
    from messages
),

-- Within its session, each message has a neighbor on either side, but the first and the last.
in_session as (
    select
        *,
        first_value(side) over session as initiator,
        lag(side) over session as side_before,
        lead(side) over session as side_after
    from numbered
    window session as (partition by chat_id, session_number order by place_in_thread)
),

sessions as (
    select
        chat_id,
        cast(session_number as bigint) as session_number,
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
    group by chat_id, session_number
),

followed as (
    select
        *,
        lead(started_at) over (partition by chat_id order by session_number) as reopened_at,
        lead(initiator) over (partition by chat_id order by session_number) as reopened_by
    from sessions
)

select
    chats.chat_id,
    followed.session_number,
    chats.from_handle,
    chats.is_group,
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
from chats
left join followed on followed.chat_id = chats.chat_id
{{ join_period('asked', 'chats.schedule_number', 'followed.started_at') }}
{{ join_period('replied', 'chats.schedule_number', 'followed.first_response_at') }}
