-- A chat that no longer has members yields a row without a handle, which replaces the old rows and is deleted by the hook.
{{ config(post_hook="{{ delete_where('handle is null') }}") }}
-- depends_on: {{ ref('chats_to_build') }}, {{ ref('unbuilt_loads') }}

with chats_to_build as (
    {% if is_incremental() -%}
    select touched.chat_id
    from (
        select chat_id from {{ ref('chats_to_build') }} where mart = 'group_membership'
        union
        select chat_id from {{ source('bookkeeping', 'days_to_build') }} where mart = 'group_membership'
        union
        select chat_id from {{ ref('stg_participant_lists') }} where load_id in ({{ new_loads() }})
        union
        select chat_id from {{ ref('stg_group_member_operations') }} where load_id in ({{ new_loads() }})
    ) as touched
    where
        touched.chat_id in (select chat_id from {{ ref('stg_chats') }} where is_group)
        or touched.chat_id in (select chat_id from {{ this }})
    {%- else -%}
    select chat_id from {{ ref('stg_chats') }} where is_group
    {%- endif %}
),

groups_to_build as (
    select chat_id, {{ folded_handle('from_handle') }} as from_handle, from_handle as spelling, created_at, fetched_at
    from {{ ref('stg_chats') }}
    where is_group and chat_id in (select chat_id from chats_to_build)
),

lists as (
    select
        lists.chat_id,
        {{ folded_handle('lists.handle') }} as handle,
        lists.handle as spelling,
        lists.fetched_at
    from {{ ref('stg_participant_lists') }} as lists
    where lists.chat_id in (select chat_id from groups_to_build)
),

operations as (
    select
        operations.chat_id,
        {{ folded_handle('operations.handle') }} as handle,
        operations.handle as spelling,
        operations.operation,
        operations.happened_at
    from {{ ref('stg_group_member_operations') }} as operations
    where operations.chat_id in (select chat_id from groups_to_build) and operations.happened_at is not null
),

-- On a day on which nobody can have left, the first and the last message prove as much as all of them.
days_with_absences as (
    select distinct chat_id, cast({{ local_time('absent_at') }} as date) as day
    from (
        select chat_id, happened_at as absent_at from operations where operation = 'removed'
        union all
        select chat_id, fetched_at from lists
    ) as absences
),

messages as (
    select
        parts.chat_id,
        {{ folded_handle('parts.sender') }} as handle,
        parts.sender as spelling,
        parts.direction,
        parts.first_message_at,
        parts.latest_message_at,
        parts.messages_total
    from {{ ref('int_thread_days') }} as parts
    left join days_with_absences as absences on absences.chat_id = parts.chat_id and absences.day = parts.day
    where parts.chat_id in (select chat_id from groups_to_build) and absences.day is null

    union all

    select
        messages.chat_id,
        {{ folded_handle('messages.sender') }},
        messages.sender,
        messages.direction,
        messages.message_at,
        messages.message_at,
        1
    from {{ ref('int_thread_messages') }} as messages
    inner join days_with_absences as absences on absences.chat_id = messages.chat_id and absences.day = messages.day
),

-- A handle may have several spellings in a group: from here on it is folded, and the result shows one spelling.
spellings as (
    select chat_id, handle, max(spelling) as spelling
    from (
        select chat_id, handle, spelling from messages
        union all
        select chat_id, handle, spelling from lists
        union all
        select chat_id, handle, spelling from operations
        union all
        select chat_id, from_handle, spelling from groups_to_build
    ) as spelled
    group by chat_id, handle
),

-- Times at which a handle was seen in the group, with the evidence.
seen as (
    select chat_id, handle, happened_at as seen_at, 'operation' as evidence, 0 as message_count
    from operations
    where operation = 'added'

    union all

    select chat_id, handle, fetched_at, 'participant_list', 0 from lists

    union all

    -- Our number is in the group from its creation, whose time the API may not report.
    select chat_id, from_handle, coalesce(created_at, fetched_at), 'own_number', 0 from groups_to_build

    union all

    select
        chat_id,
        handle,
        first_message_at,
        case when direction = 'outbound' then 'own_number' else 'message' end,
        messages_total
    from messages
    where direction in ('inbound', 'outbound')

    union all

    select chat_id, handle, latest_message_at, case when direction = 'outbound' then 'own_number' else 'message' end, 0
    from messages
    where direction in ('inbound', 'outbound') and latest_message_at > first_message_at
),

-- A handle that we removed was a member before: if there is no earlier evidence, since the creation of the group.
present as (
    select chat_id, handle, seen_at, evidence, message_count
    from seen
    where handle is not null and seen_at is not null

    union all

    select removed.chat_id, removed.handle, groups_to_build.created_at, 'removal', 0
    from (
        select chat_id, handle, min(happened_at) as happened_at
        from operations
        where operation = 'removed' and handle is not null
        group by chat_id, handle
    ) as removed
    inner join groups_to_build on groups_to_build.chat_id = removed.chat_id
    left join (
        select chat_id, handle, min(seen_at) as seen_at
        from seen
        group by chat_id, handle
    ) as first_seen on first_seen.chat_id = removed.chat_id and first_seen.handle = removed.handle
    where
        groups_to_build.created_at < removed.happened_at
        and (first_seen.seen_at is null or first_seen.seen_at >= removed.happened_at)
),

handles as (
    select distinct chat_id, handle from present
),

-- Times at which a handle was absent: a list proves it for every handle that is not on it, except our number, which lists
-- may leave out.
absent as (
    select chat_id, handle, happened_at as seen_at, 'operation' as evidence
    from operations
    where operation = 'removed'

    union all

    select handles.chat_id, handles.handle, snapshots.fetched_at, 'participant_list'
    from handles
    inner join (select distinct chat_id, fetched_at from lists) as snapshots on snapshots.chat_id = handles.chat_id
    inner join groups_to_build on groups_to_build.chat_id = handles.chat_id
    left join lists
        on lists.chat_id = handles.chat_id
        and lists.handle = handles.handle
        and lists.fetched_at = snapshots.fetched_at
    where lists.chat_id is null and handles.handle is distinct from groups_to_build.from_handle
),

-- One row per time; at equal times, presence comes after absence.
observations_in_order as (
    select chat_id, handle, seen_at, 0 as is_present, max(case when evidence = 'operation' then 1 else 0 end) as by_us
    from absent
    where handle is not null
    group by chat_id, handle, seen_at

    union all

    select chat_id, handle, seen_at, 1, 0
    from present
    group by chat_id, handle, seen_at
),

-- A membership begins at the first presence after absence, and ends at the first absence after presence.
changes as (
    select
        *,
        case
            when is_present <> coalesce(lag(is_present) over thread, 0) then 1 else 0
        end as is_change
    from observations_in_order
    window thread as (partition by chat_id, handle order by seen_at, is_present)
),

intervals as (
    select *
    from (
        select
            chat_id,
            handle,
            is_present,
            seen_at as valid_from,
            lead(seen_at) over thread as valid_to,
            case lead(by_us) over thread when 1 then 'operation' when 0 then 'participant_list' end as end_evidence
        from changes
        where is_change = 1
        window thread as (partition by chat_id, handle order by seen_at, is_present)
    ) as alternating
    where is_present = 1
),

members as (
    select
        intervals.chat_id,
        intervals.handle,
        intervals.valid_from,
        intervals.valid_to,
        intervals.end_evidence,
        max(case when present.evidence = 'operation' then 'operation' end) as operation,
        max(case when present.evidence = 'participant_list' then 'participant_list' end) as participant_list,
        max(case when present.evidence = 'own_number' then 'own_number' end) as own_number,
        max(case when present.evidence = 'message' then 'message' end) as message,
        max(case when present.evidence = 'removal' then 'operation' end) as removal,
        min(case when present.evidence <> 'removal' then present.seen_at end) as first_seen_at,
        max(case when present.evidence <> 'removal' then present.seen_at end) as last_seen_at,
        cast(sum(present.message_count) as bigint) as messages
    from intervals
    inner join present
        on present.chat_id = intervals.chat_id
        and present.handle = intervals.handle
        and present.seen_at >= intervals.valid_from
        and (present.seen_at < intervals.valid_to or intervals.valid_to is null)
    group by
        intervals.chat_id, intervals.handle, intervals.valid_from, intervals.valid_to, intervals.end_evidence
),

threads as (
    select
        chat_id,
        cast(sum(messages_total) as bigint) as messages_total,
        -- If the API names the sender of no inbound message, silence proves nothing.
        count(case when direction = 'inbound' then 1 end) = 0
        or count(case when direction = 'inbound' then handle end) > 0 as names_senders
    from messages
    group by chat_id
)

select
    chats_to_build.chat_id,
    spellings.spelling as handle,
    members.valid_from,
    members.valid_to,
    members.valid_to is null as is_current,
    -- Strongest evidence first.
    coalesce(
        members.operation, members.participant_list, members.own_number, members.message, members.removal
    ) as evidence,
    concat_ws(
        ',',
        coalesce(members.operation, members.removal), members.participant_list, members.own_number, members.message
    ) as evidence_all,
    case
        when coalesce(members.operation, members.participant_list, members.own_number) is not null then 'high'
        when members.message is not null then 'medium'
        else 'low'
    end as confidence,
    members.end_evidence,
    members.first_seen_at,
    members.last_seen_at,
    case
        when threads.names_senders or (threads.chat_id is not null and members.handle = groups.from_handle)
            then members.messages
    end as message_count,
    case
        when threads.names_senders or members.handle = groups.from_handle
            then {{ as_double('members.messages') }} / threads.messages_total
    end as message_share,
    threads.messages_total as thread_messages_total
from chats_to_build
left join members on members.chat_id = chats_to_build.chat_id
left join spellings on spellings.chat_id = members.chat_id and spellings.handle = members.handle
left join threads on threads.chat_id = chats_to_build.chat_id
left join groups_to_build as groups on groups.chat_id = chats_to_build.chat_id
{%- if target.type == 'spark' %}
where members.handle is not null
{%- endif %}
