-- An increment writes the tails of chats again, from the first day on that may differ (see cut_tails).
{{ config(
    incremental_strategy='append',
    pre_hook="{{ cut_tails() }}",
    post_hook="{{ record_days_to_build() }}",
    indexes=[{'columns': ['message_id']}, {'columns': ['chat_id', 'day']}] if target.type == 'postgres' else []
) }}
-- depends_on: {{ ref('chats_to_build') }}, {{ ref('changed_messages') }}

with messages as (
    select
        messages.chat_id,
        messages.message_id,
        chats.from_handle,
        chats.is_group,
        messages.message_at,
        {{ local_time('messages.message_at') }} as local_at,
        messages.direction,
        -- A failed message reaches nobody, so no side has spoken. A message without a status counts as sent.
        case
            when messages.direction = 'inbound' then 'them'
            when messages.direction = 'outbound' and coalesce(messages.status, '') <> 'failed' then 'us'
        end as side,
        -- At equal times the inbound message is the later one: better to check a chat too many than to miss one.
        case when messages.direction = 'inbound' then 1 else 0 end as order_at_equal_times,
        messages.channel,
        case
            when messages.direction = 'outbound' then chats.from_handle
            when messages.direction is distinct from 'inbound' then null
            when messages.sender_handle is not null then messages.sender_handle
            when not chats.is_group then chats.remote_handle
        end as sender,
        messages.direction = 'outbound' and coalesce(messages.status, '') = 'failed' as is_failed,
        messages.direction = 'outbound'
        and coalesce(messages.status, '') <> 'failed'
        and (
            messages.status in ('delivered', 'read')
            or messages.delivered_at is not null
            or messages.read_at is not null
        ) as is_delivered,
        messages.direction = 'outbound'
        and coalesce(messages.status, '') <> 'failed'
        and (messages.status = 'read' or messages.read_at is not null) as is_read,
        coalesce(messages.attachment_count, 0) as attachment_count,
        {%- if is_incremental() %}
        tails.place_before,
        tails.message_before_at,
        tails.side_before,
        tails.turn_before_at,
        tails.spoke_before_at,
        tails.turns_before,
        tails.sessions_before,
        {%- else %}
        0 as place_before,
        cast(null as {{ engine_type('timestamptz') }}) as message_before_at,
        cast(null as {{ engine_type('varchar') }}) as side_before,
        cast(null as {{ engine_type('timestamptz') }}) as turn_before_at,
        cast(null as {{ engine_type('timestamptz') }}) as spoke_before_at,
        0 as turns_before,
        0 as sessions_before,
        {%- endif %}
        messages.fetched_at
    from {{ ref('stg_messages') }} as messages
    inner join {{ ref('stg_chats') }} as chats on chats.chat_id = messages.chat_id
    {%- if is_incremental() %}
    inner join {{ source('bookkeeping', 'thread_tails') }} as tails
        on tails.chat_id = messages.chat_id and messages.message_at >= tails.since
    {%- endif %}
    where
        messages.counts_in_thread
        {%- if is_incremental() %}
        and cast({{ local_time('messages.message_at') }} as date) >= tails.first_day
        {%- endif %}
),

in_order as (
    select
        *,
        place_before + row_number() over thread as place_in_thread,
        coalesce(lag(message_at) over thread, message_before_at) as gap_began_at,
        coalesce(max(case when side is not null then message_at end) over earlier, spoke_before_at) as silent_since
    from messages
    window
        thread as (partition by chat_id order by message_at, order_at_equal_times, message_id),
        earlier as (
            partition by chat_id order by message_at, order_at_equal_times, message_id
            rows between unbounded preceding and 1 preceding
        )
),

-- A turn begins where the side changes. It answers the other side's turn before it, which began at asked_at.
turns as (
    select
        chat_id,
        place_in_thread,
        turns_before + row_number() over thread as turn_number,
        coalesce(lag(message_at) over thread, turn_before_at) as asked_at
    from (
        select
            *,
            coalesce(lag(side) over (partition by chat_id order by place_in_thread), side_before) as last_side
        from in_order
        where side is not null
    ) as spoken
    where side is distinct from last_side
    window thread as (partition by chat_id order by place_in_thread)
)

select
    in_order.chat_id,
    in_order.message_id,
    in_order.from_handle,
    in_order.is_group,
    in_order.message_at,
    cast(in_order.local_at as date) as day,
    {{ weekday('in_order.local_at') }} as weekday,
    cast(extract(hour from in_order.local_at) as integer) as hour,
    in_order.direction,
    in_order.side,
    in_order.channel,
    in_order.sender,
    in_order.is_failed,
    in_order.is_delivered,
    in_order.is_read,
    in_order.attachment_count,
    in_order.place_in_thread,
    {{ seconds_between('in_order.gap_began_at', 'in_order.message_at') }} as gap_seconds,
    turns.turn_number is not null as starts_turn,
    case
        when in_order.side is not null
            then coalesce(max(turns.turn_number) over thread, in_order.turns_before)
    end as turn_number,
    {{ starts_session('in_order') }} as starts_session,
    case
        when in_order.side is not null
            then in_order.sessions_before + count(case when {{ starts_session('in_order') }} then 1 end) over thread
    end as session_number,
    -- Sides alternate, and the first turn is no reply.
    case when turns.turn_number > 1 then cast(floor(turns.turn_number / 2) as bigint) end as reply_number,
    {{ seconds_between('turns.asked_at', 'in_order.message_at') }} as reply_seconds,
    in_order.fetched_at
from in_order
left join turns on turns.chat_id = in_order.chat_id and turns.place_in_thread = in_order.place_in_thread
window thread as (partition by in_order.chat_id order by in_order.place_in_thread rows unbounded preceding)
{%- if not is_incremental() %}
-- Increments, and most queries, need the latest days only: DuckDB and Parquet skip blocks with others.
order by day
{%- endif %}
