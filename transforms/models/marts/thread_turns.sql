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
)

select
    chats.chat_id,
    answered.turn_number,
    answered.session_number,
    answered.starts_session,
    answered.side,
    chats.from_handle,
    chats.is_group,
    answered.channel,
    answered.began_at,
    answered.ended_at,
    answered.day,
    answered.message_count,
    answered.answered_at,
    {{ seconds_between('answered.began_at', 'answered.answered_at') }} as reply_seconds,
    {{ business_seconds('asked', 'answered.began_at', 'replied', 'answered.answered_at') }}
        as business_reply_seconds,
    answered.answered_at is null and chats.deleted_at is null as is_open
from chats
left join answered on answered.chat_id = chats.chat_id
{{ join_period('asked', 'chats.schedule_number', 'answered.began_at') }}
{{ join_period('replied', 'chats.schedule_number', 'answered.answered_at') }}
