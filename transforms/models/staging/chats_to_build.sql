-- Grain: one row a mart and a chat that has rows of a load which the mart does not hold yet.
with unbuilt_loads as (
    select marts.mart, loads.load_id
    from (values ('thread_activity'), ('group_membership')) as marts (mart) -- a mart that is not here never changes
    cross join {{ ref('loads') }} as loads
    left join {{ source('bookkeeping', 'built_loads') }} as built
        on built.mart = marts.mart and built.load_id = loads.load_id
    where built.load_id is null
),

touched as (
    select chat_id, load_id from {{ ref('stg_chats') }}
    union all
    select chat_id, load_id from {{ ref('stg_messages') }}
)

select distinct unbuilt_loads.mart, touched.chat_id
from touched
inner join unbuilt_loads on unbuilt_loads.load_id = touched.load_id
where touched.chat_id is not null
