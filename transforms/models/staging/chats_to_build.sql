{{ config(materialized='table') }}

{#- The chats of which group_membership has rows: one that is no group any more loses them. -#}
{%- set members = adapter.get_relation(this.database, in_marts(), 'group_membership') if target.type != 'spark' %}

with touched as (
    -- A new message changes its chat's row too, but rarely a column that the other messages copy.
    select unbuilt_loads.mart, chats.chat_id
    from {{ ref('stg_chats') }} as chats
    inner join {{ ref('unbuilt_loads') }} as unbuilt_loads on unbuilt_loads.load_id = chats.load_id
    left join {{ source('bookkeeping', 'thread_chats') }} as built on built.chat_id = chats.chat_id
    where
        unbuilt_loads.mart = 'int_thread_messages'
        and (
            built.chat_id is null
            or built.from_handle is distinct from chats.from_handle
            or built.remote_handle is distinct from chats.remote_handle
            or built.is_group is distinct from chats.is_group
        )

    union all

    select unbuilt_loads.mart, chats.chat_id
    from {{ ref('stg_chats') }} as chats
    inner join {{ ref('unbuilt_loads') }} as unbuilt_loads on unbuilt_loads.load_id = chats.load_id
    where
        unbuilt_loads.mart in ('int_typing_spells', 'int_contact_replies')
        or (
            unbuilt_loads.mart = 'group_membership'
            {%- if members %}
            and (chats.is_group or chats.chat_id in (select chat_id from {{ in_marts() }}.group_membership))
            {%- endif %}
        )

    union all

    select unbuilt_loads.mart, chats.chat_id
    from {{ ref('stg_contact_aliases') }} as aliases
    inner join {{ ref('unbuilt_loads') }} as unbuilt_loads on unbuilt_loads.load_id = aliases.load_id
    inner join {{ ref('stg_chats') }} as chats on {{ folded_handle('chats.remote_handle') }} = aliases.handle
    where unbuilt_loads.mart = 'int_contact_replies'

    union all

    select unbuilt_loads.mart, lists.chat_id
    from {{ ref('stg_participant_lists') }} as lists
    inner join {{ ref('unbuilt_loads') }} as unbuilt_loads on unbuilt_loads.load_id = lists.load_id
    where unbuilt_loads.mart = 'group_membership'

    union all

    select unbuilt_loads.mart, operations.chat_id
    from {{ ref('stg_group_member_operations') }} as operations
    inner join {{ ref('unbuilt_loads') }} as unbuilt_loads on unbuilt_loads.load_id = operations.load_id
    where unbuilt_loads.mart = 'group_membership'

    union all

    select unbuilt_loads.mart, titles.chat_id
    from {{ ref('stg_chat_titles') }} as titles
    inner join {{ ref('unbuilt_loads') }} as unbuilt_loads on unbuilt_loads.load_id = titles.load_id
    where unbuilt_loads.mart = 'chat_title_history'

    union all

    select unbuilt_loads.mart, events.chat_id
    from {{ ref('stg_webhook_events') }} as events
    inner join {{ ref('unbuilt_loads') }} as unbuilt_loads on unbuilt_loads.load_id = events.load_id
    where unbuilt_loads.mart = 'int_typing_spells' and events.event_type = 'conversation.typing'
)

select distinct mart, chat_id
from touched
where chat_id is not null
