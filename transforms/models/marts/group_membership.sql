-- Grain: one row a group chat and a handle. Owner: data team.
-- depends_on: {{ ref('chats_to_build') }}
{{ config(post_hook="delete from {{ this }} where handle is null") }}

with chats_to_build as (
    {% if is_incremental() -%}
    select chat_id from {{ ref('chats_to_build') }} where mart = 'group_membership'
    union
    -- A message that left a chat shows in no new row of that chat, only in its count.
    select built.chat_id
    from {{ this }} as built
    left join {{ ref('thread_sizes') }} as landed on landed.chat_id = built.chat_id
    where built.thread_messages_total <> coalesce(landed.messages_total, 0)
    {%- else -%}
    select chat_id from {{ ref('stg_chats') }} where is_group
    {%- endif %}
),

groups_to_build as (
    select chat_id, from_handle, created_at
    from {{ ref('stg_chats') }}
    where is_group and chat_id in (select chat_id from chats_to_build)
),

evidence as (
    select chat_id, from_handle as handle, 'own_number' as evidence, created_at as seen_at, 0 as messages
    from groups_to_build

    union all

    select
        written.chat_id,
        case when written.direction = 'outbound' then groups_to_build.from_handle else written.sender_handle end,
        case when written.direction = 'outbound' then 'own_number' else 'message' end,
        written.message_at,
        1
    from {{ ref('stg_messages') }} as written
    inner join groups_to_build on groups_to_build.chat_id = written.chat_id
    where written.counts_in_thread and written.direction in ('inbound', 'outbound')
),

members as (
    select
        chat_id,
        handle,
        max(case when evidence = 'own_number' then 'own_number' end) as own_number,
        max(case when evidence = 'message' then 'message' end) as message,
        min(seen_at) as first_seen_at,
        max(seen_at) as last_seen_at,
        cast(sum(messages) as bigint) as message_count
    from evidence
    where handle is not null
    group by chat_id, handle
)

-- A chat with no member left yields a row without a handle: it replaces the chat's old rows, and the hook removes it.
select
    chats_to_build.chat_id,
    members.handle,
    -- In the order of their weight: the first is the main one.
    coalesce(members.own_number, members.message) as evidence,
    concat_ws(',', members.own_number, members.message) as evidence_all,
    members.first_seen_at,
    members.last_seen_at,
    members.message_count,
    coalesce(thread_sizes.messages_total, 0) as thread_messages_total
from chats_to_build
left join members on members.chat_id = chats_to_build.chat_id
left join {{ ref('thread_sizes') }} as thread_sizes on thread_sizes.chat_id = chats_to_build.chat_id
