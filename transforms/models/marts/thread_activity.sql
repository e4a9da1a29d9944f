-- A view, because coverage changes for all chats at once.
{{ config(materialized=view_for_readers()) }}

with coverage as (
    {{ messages_coverage() }}
),

recent as (
    select
        chat_id,
        sum(case when daily.day > coverage.last_day - 7 then daily.messages_total else 0 end) as messages_last_7_days,
        sum(daily.messages_total) as messages_last_30_days
    from {{ ref('thread_activity_daily') }} as daily
    cross join coverage
    where daily.day > coverage.last_day - 30 and daily.day <= coverage.last_day
    group by daily.chat_id
),

typing as (
    select chat_id, max(last_typing_at) as last_typing_at
    from {{ ref('int_typing_spells') }}
    group by chat_id
),

threads as (
    select
        chats.chat_id,
        chats.from_handle,
        chats.remote_handle,
        chats.is_group,
        chats.title,
        chats.created_at as chat_created_at,
        chats.deleted_at,
        chats.last_message_at,
        chats.fetched_at as chat_fetched_at,
        measures.first_message_at,
        measures.latest_message_at,
        measures.messages_total as messages_read_total,
        measures.messages_inbound,
        measures.messages_outbound,
        measures.messages_failed,
        measures.messages_delivered,
        measures.messages_read,
        measures.messages_imessage,
        measures.messages_sms,
        measures.messages_whatsapp,
        measures.main_channel,
        measures.attachments_total,
        measures.distinct_senders,
        measures.first_day,
        measures.active_days,
        measures.longest_gap_seconds,
        measures.last_inbound_at,
        measures.last_outbound_at,
        measures.spoke_at,
        measures.first_side,
        measures.waiting_on,
        measures.unanswered_since,
        measures.our_replies,
        measures.their_replies,
        measures.our_first_response_seconds,
        measures.their_first_response_seconds,
        measures.our_median_reply_seconds,
        measures.our_p90_reply_seconds,
        measures.their_median_reply_seconds,
        measures.their_p90_reply_seconds,
        measures.messages_fetched_at,
        coverage.complete_since as messages_complete_since,
        coverage.as_of,
        coverage.last_day as coverage_day,
        -- All messages since the chat's creation have been read. A chat that was deleted before it was read has no
        -- known creation, and if reading a chat's messages failed, any of them may be missing.
        failed.unit_id is null and coalesce(
            coverage.complete_since
            <= least(coalesce(chats.created_at, {{ epoch() }}), measures.first_message_at),
            false
        ) and (chats.deleted_at is null or chats.created_at is not null) as is_beginning_read,
        -- The latest message has been read, or the API has not returned it within the lookback (it was deleted).
        failed.unit_id is null and coalesce(
            measures.latest_message_at >= chats.last_message_at
            or (
                chats.last_message_at >= coverage.complete_since
                and {{ seconds_between('chats.last_message_at', 'coverage.as_of') }}
                > {{ var('lookback_seconds') }}
            ),
            chats.last_message_at is null
        ) as is_end_read,
        -- Before a message that is newer than the coverage, there may be others that have not been read.
        coalesce(
            greatest(chats.last_message_at, measures.latest_message_at) < coverage.read_until, true
        ) as is_within_coverage,
        recent.messages_last_7_days,
        recent.messages_last_30_days,
        typing.last_typing_at
    from {{ ref('stg_chats') }} as chats
    cross join coverage
    left join {{ ref('int_thread_measures') }} as measures on measures.chat_id = chats.chat_id
    left join recent on recent.chat_id = chats.chat_id
    left join typing on typing.chat_id = chats.chat_id
    left join {{ ref('stg_failed_reads') }} as failed on failed.kind = 'thread' and failed.unit_id = chats.chat_id
),

-- If no message has been read, the chat is known to be empty only if its coverage is complete.
counted as (
    select
        *,
        case
            when messages_read_total is null and is_beginning_read and is_end_read then 0
            else messages_read_total
        end as messages_total,
        {%- if var('close_after_days') %}
        {{ is_closed('spoke_at', 'as_of') }}
        {%- else %}
        false
        {%- endif %} as is_closed
    from threads
)

select
    chat_id,
    from_handle,
    remote_handle,
    is_group,
    title,
    chat_created_at,
    deleted_at,
    last_message_at,
    first_message_at,
    latest_message_at,
    messages_total,
    case when messages_total = 0 then 0 else messages_inbound end as messages_inbound,
    case when messages_total = 0 then 0 else messages_outbound end as messages_outbound,
    case when messages_total = 0 then 0 else messages_failed end as messages_failed,
    case when messages_total = 0 then 0 else messages_delivered end as messages_delivered,
    case when messages_total = 0 then 0 else messages_read end as messages_read,
    {{ as_double('messages_delivered') }} / nullif(messages_outbound, 0) as delivery_rate,
    {{ as_double('messages_read') }} / nullif(messages_delivered, 0) as read_rate,
    case when messages_total = 0 then 0 else messages_imessage end as messages_imessage,
    case when messages_total = 0 then 0 else messages_sms end as messages_sms,
    case when messages_total = 0 then 0 else messages_whatsapp end as messages_whatsapp,
    main_channel,
    case when messages_total = 0 then 0 else attachments_total end as attachments_total,
    case when messages_total = 0 then 0 else distinct_senders end as distinct_senders,
    case when messages_total = 0 then 0 else active_days end as active_days,
    {%- for days in (7, 30) %}
    case
        when
            messages_total is not null
            and messages_complete_since <= greatest(
                {{ midnight('coverage_day - ' ~ (days - 1)) }}, least(chat_created_at, first_message_at)
            )
            then cast(coalesce(messages_last_{{ days }}_days, 0) as bigint)
    end as messages_last_{{ days }}_days,
    {%- endfor %}
    case
        when is_end_read and as_of is not null
            then cast(floor({{ seconds_between('latest_message_at', 'greatest(as_of, latest_message_at)') }} / 86400) as bigint)
    end as dormant_days,
    longest_gap_seconds,
    last_inbound_at,
    last_outbound_at,
    case when is_beginning_read then first_day end as began_on,
    case when is_beginning_read then first_side end as initiator,
    case
        -- No side can write in a deleted chat.
        when deleted_at is not null then 'nobody'
        when not is_end_read then null
        when messages_total = 0 or is_closed then 'nobody'
        else waiting_on
    end as waiting_on,
    case when deleted_at is null and is_end_read and not is_closed then unanswered_since end as unanswered_since,
    case when messages_total = 0 then 0 else our_replies end as our_replies,
    case when messages_total = 0 then 0 else their_replies end as their_replies,
    case when is_beginning_read then our_first_response_seconds end as our_first_response_seconds,
    case when is_beginning_read then their_first_response_seconds end as their_first_response_seconds,
    our_median_reply_seconds,
    our_p90_reply_seconds,
    their_median_reply_seconds,
    their_p90_reply_seconds,
    last_typing_at,
    case
        when last_inbound_at >= last_typing_at then false
        when last_typing_at is not null and is_end_read then true
    end as has_typed_unsent,
    messages_complete_since,
    is_beginning_read and is_end_read and is_within_coverage as is_complete,
    greatest(chat_fetched_at, messages_fetched_at) as fetched_at
from counted
