-- Reads no other loaded rows: if a table or view of those fails, models that do not read it are still built.
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
)

select distinct mart, chat_id
from touched
where chat_id is not null
