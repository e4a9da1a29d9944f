-- A view over int_typing_spells, so it needs no increments of its own.
{{ config(materialized=view_for_readers()) }}

select
    chat_id,
    day,
    count(*) as spells,
    count(sent_at) as spells_sent,
    count(*) - count(sent_at) as spells_unsent,
    min(started_at) as first_started_at,
    max(last_typing_at) as last_typing_at
from {{ ref('int_typing_spells') }}
group by chat_id, day
