-- Grain: one row a mart and a chat that has rows of a load which the mart does not hold yet.
with marts as (
    select mart, built_from
    from (
        values -- a mart that is not here never changes
            ('thread_activity', 'chats'),
            ('thread_activity', 'messages'),
            ('group_membership', 'chats'),
            ('group_membership', 'messages'),
            ('chat_title_history', 'chat_titles')
    ) as marts (mart, built_from)
),

unbuilt_loads as (
    select marts.mart, marts.built_from, loads.load_id
    from marts
    cross join {{ ref('loads') }} as loads
    left join {{ source('bookkeeping', 'built_loads') }} as built
        on built.mart = marts.mart and built.load_id = loads.load_id
    where built.load_id is null
),

touched as (
    select 'chats' as landed_in, chat_id, load_id from {{ ref('stg_chats') }}
    union all
    select 'messages', chat_id, load_id from {{ ref('stg_messages') }}
    union all
    select 'chat_titles', chat_id, load_id from {{ ref('stg_chat_titles') }}
)

select distinct unbuilt_loads.mart, touched.chat_id
from touched
inner join unbuilt_loads
    on unbuilt_loads.load_id = touched.load_id and unbuilt_loads.built_from = touched.landed_in
where touched.chat_id is not null
