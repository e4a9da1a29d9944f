{{ config(materialized='table') }}

select marts.mart, loads.load_id
from (
    values -- a model that is missing here is never updated
        ('int_thread_messages'),
        ('group_membership'),
        ('chat_title_history'),
        ('int_typing_spells'),
        ('int_contact_replies')
) as marts (mart)
cross join {{ ref('loads') }} as loads
left join {{ source('bookkeeping', 'built_loads') }} as built
    on built.mart = marts.mart and built.load_id = loads.load_id
where built.load_id is null
